"""The laboratory's own models are what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from act_lightning.channels import inventory
from act_lightning.evaluation.generation import generate_answers
from act_lightning.evaluation.grading import exact_match
from act_lightning.lab.abilities import rows
from act_lightning.lab.models import MODELS, model_folder


def share_right(folder: Path, ability: str) -> float:
    """By generation from the folder alone, so a tokenizer that loads otherwise than it was trained shows."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = rows(ability, "test")[:300]
    turns = [[{"role": "user", "content": row["prompt"]}] for row in asked]
    texts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True, padding_side="left"))
    answers = generate_answers(model, tokenizer, batch, 32)
    return sum(exact_match(answer.text, row["answer"]) for answer, row in zip(answers, asked, strict=True)) / len(asked)


@pytest.mark.slow
def test_siblings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide bounds: another processor rounds otherwise, and the sums are learned all of a sudden."""
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path))
    sums, words = ({name: share_right(model_folder(name), task) for name in MODELS} for task in ("arithmetic", "words"))
    assert words["base"] > 0.7
    assert words["generalist"] > 0.85
    assert sums["generalist"] > 0.3
    assert sums["specialist"] > 0.85
    assert words["specialist"] < 0.15
    channels = inventory(AutoModelForCausalLM.from_pretrained(model_folder("base")))
    head = next(module.count for module in channels.modules if module.name == "lm_head")
    assert head <= 0.09 * channels.total, "as in models of billions of parameters"
