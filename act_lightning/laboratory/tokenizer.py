"""The laboratory's tokenizer: Qwen2's way of cutting text, digits one by one, with a vocabulary learned here."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

PAD, END = "<|endoftext|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Learn a vocabulary from ``texts``; the chat template puts a role before and an end after each turn.

    The class is Qwen2's own, because ``AutoTokenizer`` loads that one from the folder of a Qwen2 model, whatever class
    wrote the tokenizer there, and would cut the text in its own way.
    """
    empty = Qwen2Tokenizer(eos_token=END, pad_token=PAD, extra_special_tokens=list(ROLES), model_max_length=256)
    tokenizer: PreTrainedTokenizerBase = empty.train_new_from_iterator(texts, vocabulary, show_progress=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
