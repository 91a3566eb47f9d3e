"""Small tokenizers that read text as the families in use do: normalizers, splits, decoders, special tokens, chats."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = "system user assistant What is one and two? The sum is three. A chat between USER: ASSISTANT: [INST] [/INST] "
SPLIT = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_CHAT = (  # Qwen2.5-7B-Instruct, without tools
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (loop.first and message.role == 'system') %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
MISTRAL_CHAT = (  # Mistral-7B-Instruct-v0.3, without tools
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- '[INST] ' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)


def _trained(tokenizer: Tokenizer, special: Sequence[str], alphabet: list[str], size: int) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 8, trainer)
    return tokenizer


def _bytes(special: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(SPLIT, "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, special, pre_tokenizers.ByteLevel.alphabet(), 256 + len(special) + 60)


def _pieces(special: Sequence[str]) -> Tokenizer:
    """Sentence pieces with a fallback to bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    _trained(tokenizer, ["<unk>", *special, *spelled], [], 3 + len(special) + 256 + 90)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    state = json.loads(tokenizer.to_str())  # bytes are ordinary tokens, but the trainer knows only special ones
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["content"] not in spelled]
    return Tokenizer.from_str(json.dumps(state))


def _first(tokenizer: Tokenizer, token: str) -> None:
    processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=None, special_tokens=[(token, tokenizer.token_to_id(token))]
    )
    tokenizer.post_processor = processor


def qwen() -> PreTrainedTokenizerFast:
    """Qwen2.5: NFC, bytes, nothing added, ChatML with a system turn of its own."""
    tokenizer = _bytes(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    return _fast(tokenizer, QWEN_CHAT, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def chatml() -> PreTrainedTokenizerFast:
    """Bytes without normalization; no chat template: the shipped one is used."""
    return _fast(_bytes(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), None, eos_token="<|im_end|>")


def llama3() -> PreTrainedTokenizerFast:
    """Llama 3: bytes, a BOS added by default; the shipped template is its own."""
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"]
    special = [f"<|{name}|>" for name in names]
    tokenizer = _bytes(special)
    _first(tokenizer, special[0])
    return _fast(tokenizer, None, bos_token=special[0], eos_token=special[4])


def llama2() -> PreTrainedTokenizerFast:
    """Llama 2: pieces over spaces, a space put before every text, bytes for what is unknown, a BOS added by default."""
    tokenizer = _pieces(["<s>", "</s>"])
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    _first(tokenizer, "<s>")
    return _fast(tokenizer, None, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def mistral() -> PreTrainedTokenizerFast:
    """Mistral v0.3: pieces, a space put before the first word only, special tokens for instructions."""
    tokenizer = _pieces(["<s>", "</s>", "[INST]", "[/INST]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    _first(tokenizer, "<s>")
    return _fast(tokenizer, MISTRAL_CHAT, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _fast(tokenizer: Tokenizer, template: str | None, **special: str) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    fast.chat_template = template
    return fast


FAMILIES: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], str]] = {
    "qwen2.5": (qwen, "chat"),
    "llama2": (llama2, "llama2"),
    "llama3": (llama3, "llama3"),
    "chatml": (chatml, "chatml"),
    "mistral": (mistral, "chat"),
}
"""Each family's tokenizer, and the template that its models were trained with."""
