"""Tiny random models and a tokenizer of every decoder-only architecture we name, made in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from act_lightning.architecture import persistent_buffers

ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gpt_neox",
    "olmo2",
    "smollm3",
)
DISTINCT = ("qwen2", "gemma3_text", "gpt2", "phi3")
"""Those that differ most: biases; tied weights, norms of four kinds; Conv1D, absolute positions; fused matrices."""
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PAD_ID, START_ID, END_ID = 0, 1, 2
VOCABULARY = 300
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "eos_token_id": END_ID,
    "pad_token_id": PAD_ID,
}
_DEFAULTS = SIZES | {"hidden_size_per_layer_input": 0, "bos_token_id": None}
_TRAINING_TEXT = "system user assistant answer question What is the sum of one and two? The answer is three. "


def each_architecture(*variants: object) -> list[tuple[Any, ...]]:
    """Every variant of the architectures that differ most, and one variant of each other, in turn."""
    others = [name for name in ARCHITECTURES if name not in DISTINCT]
    in_full = [(name, variant) for name in DISTINCT for variant in variants]
    return in_full + [(name, variants[i % len(variants)]) for i, name in enumerate(others)]


def tiny_config(architecture: str, **overrides: Any) -> PretrainedConfig:
    """The config of a two-layer model of 32 features; ``overrides`` are the config's own names."""
    return AutoConfig.for_model(architecture, **(_DEFAULTS | overrides))


def tiny_model(
    architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A random model in evaluation mode whose every parameter, norms and saved buffers too, is unlike its neighbors."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, **overrides), dtype=torch.float32)
    perturb(model, seed, 0.15)
    return model.to(dtype).eval()


def sibling_of(model: PreTrainedModel, seed: int, scale: float = 0.05) -> PreTrainedModel:
    """A deep copy with every parameter moved by ``scale`` times a normal draw; tied weights stay tied."""
    sibling = copy.deepcopy(model)
    perturb(sibling, seed, scale)
    return sibling


def perturb(model: PreTrainedModel, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in (*model.parameters(), *persistent_buffers(model).values()):
            noise = torch.randn(values.shape, generator=generator)
            values.copy_(values.float() + scale * noise)


@cache
def _byte_pairs() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TRAINING_TEXT] * 4, trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 300 entries: any text round-trips; no token is added by default."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_pairs()),
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[START],
        model_max_length=512,
    )
    tokenizer.chat_template = template
    return tokenizer


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path | str, max_shard_size: str = "5GB"
) -> Path:
    """A Hugging Face folder: safetensors, config, generation config and tokenizer."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def save_pair(folder: Path, architecture: str) -> None:
    """A model and a sibling of it, in the folders ``target`` and ``source``."""
    target = tiny_model(architecture)
    save_model(target, tiny_tokenizer(), folder / "target")
    save_model(sibling_of(target, seed=1), tiny_tokenizer(), folder / "source")


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line, in UTF-8."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)
