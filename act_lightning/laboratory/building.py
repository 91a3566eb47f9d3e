"""From nothing to a folder: the base, the generalist from the base, the specialist from the generalist."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from act_lightning.laboratory.abilities import rows
from act_lightning.laboratory.recipe import Recipe, Stage
from act_lightning.laboratory.tokenizer import build_tokenizer
from act_lightning.laboratory.training import Samples, encode, train

#: Each model and the one it is fine-tuned from.
PARENTS: dict[str, str | None] = {"base": None, "generalist": "base", "specialist": "generalist"}


def build(name: str, recipe: Recipe, parent: Path | None, folder: Path) -> None:
    """Train one model and write its Hugging Face folder; the caller's random numbers stay as they were.

    Args:
        name: A key of ``PARENTS``.
        recipe: Sizes and lengths.
        parent: The folder of the model to start from; None for the base.
        folder: Where to write, an existing folder.
    """
    stage: Stage = getattr(recipe, name)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(recipe.seed)
        model, tokenizer = _load(parent) if parent else _initialize(recipe)
        train(model, _samples(tokenizer, stage), stage, name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _one_thread() -> Iterator[None]:
    """More threads than one make so small a model slower, many times so beside another busy process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def _initialize(recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    seen = [text for row in rows("arithmetic") + rows("words") for text in (row["prompt"], row["answer"])]
    tokenizer = build_tokenizer(seen, recipe.vocabulary)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=3 * recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads // 2,
        max_position_embeddings=256,
        initializer_range=recipe.initial_spread,
        tie_word_embeddings=True,
        bos_token_id=None,
        **ends,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(**ends)
    return model, tokenizer


def _samples(tokenizer: PreTrainedTokenizerBase, stage: Stage) -> Samples:
    sums, words = rows("arithmetic"), rows("words")
    weights = [stage.arithmetic / len(sums)] * len(sums) + [(1 - stage.arithmetic) / len(words)] * len(words)
    return encode(tokenizer, sums + words, weights, stage.whole_text)
