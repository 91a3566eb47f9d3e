"""The fixtures themselves: what other tests silently rely on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import ARCHITECTURES, END_ID, PAD_ID, START_ID, VOCABULARY, sibling_of, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_channel_differs(architecture: str) -> None:
    for name, parameter in tiny_model(architecture).named_parameters():
        assert len(parameter.unique()) > 0.9 * min(parameter.numel(), 1000), name


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_sibling_moves_everything_and_stays_tied(architecture: str) -> None:
    model = tiny_model(architecture)
    sibling = sibling_of(model, seed=1)
    for (name, ours), theirs in zip(model.named_parameters(), sibling.parameters(), strict=True):
        assert (ours != theirs).float().mean() > 0.99, name
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (sibling.get_input_embeddings().weight is sibling.get_output_embeddings().weight)


def test_models_repeat_by_seed() -> None:
    first, again, other = tiny_model(seed=3), tiny_model(seed=3), tiny_model(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == VOCABULARY
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(specials) == [PAD_ID, START_ID, END_ID]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD_ID, END_ID)
    text = "The answer is नौ, 九!"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_folder_loads(target_folder: Path, source_folder: Path) -> None:
    target = AutoModelForCausalLM.from_pretrained(target_folder)
    assert torch.equal(target.lm_head.weight, tiny_model().lm_head.weight)
    assert AutoTokenizer.from_pretrained(target_folder).eos_token_id == END_ID
    assert {"config.json", "generation_config.json", "model.safetensors"} <= {p.name for p in source_folder.iterdir()}


def test_ability_file(ability_file: Path) -> None:
    rows = [json.loads(line) for line in ability_file.read_text(encoding="utf-8").splitlines()]
    lengths = [len(row["answer"]) for row in rows]
    assert len(rows) == 24
    assert max(lengths) > 20 * min(lengths)
