"""Validation's perplexity and token accuracy, against a loop over samples; means by role."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from act_lightning.data.ability_data import AbilityData, EvaluationData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.module import AbilityTransferModule
from act_lightning.training.loss import TokenScores
from act_lightning.training.validation import AnswerTokens, validation_roles
from tests.loops import quiet_trainer
from tests.tiny import save_model, tiny_model, tiny_tokenizer, write_jsonl

COUNTS = {"sums": 7, "words": 2, "verbs": 3}


@pytest.fixture
def data(tmp_path: Path) -> AbilityDataModule:
    files = {
        name: write_jsonl(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"Say {i}", "answer": "The answer " * (1 + i)} for i in range(count)],
        )
        for name, count in COUNTS.items()
    }
    abilities: dict[str, Any] = {name: AbilityData(str(file)) for name, file in files.items()}
    abilities["sums"].role = "keep"
    return AbilityDataModule(
        abilities=abilities,
        evaluations={name: EvaluationData(str(files[name]), role="recover") for name in ("words", "verbs")},
        validation=list(COUNTS),
        batch_size=2,
        max_length=64,
        target=str(save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "target")),
    )


@torch.no_grad()
def slow(data: AbilityDataModule, name: str) -> tuple[float, float]:
    """Mean loss and share of right tokens, a token at a time."""
    model, losses, right = tiny_model("llama"), [], []
    for sample in data.held_out[name].samples:
        logits = model(sample.input_ids[None]).logits[0]
        for place in range(1, len(sample.input_ids)):
            wanted = int(sample.labels[place])
            if wanted >= 0:
                losses.append(-float(logits[place - 1].log_softmax(-1)[wanted]))
                right.append(int(logits[place - 1].argmax()) == wanted)
    return fmean(losses), fmean(right)


def test_every_set_and_the_means_of_each_role(data: AbilityDataModule, tmp_path: Path) -> None:
    of_loaders = quiet_trainer(tmp_path).validate(AbilityTransferModule(data.target), data, verbose=False)
    found = {name: value for logged in of_loaders for name, value in logged.items()}
    expected = {name: slow(data, name) for name in COUNTS}
    for name, (loss, accuracy) in expected.items():
        assert found[f"val_loss/{name}"] == pytest.approx(loss, rel=1e-4)
        assert found[f"val_perplexity/{name}"] == pytest.approx(math.exp(loss), rel=1e-3)
        assert found[f"val_accuracy/{name}"] == pytest.approx(accuracy)
    lost = [expected[name] for name in ("words", "verbs")]
    assert found["val_keep_loss"] == pytest.approx(expected["sums"][0], rel=1e-4)
    assert found["val_recover_loss"] == pytest.approx(fmean(loss for loss, _ in lost), rel=1e-4)
    assert found["val_recover_accuracy"] == pytest.approx(fmean(accuracy for _, accuracy in lost))
    assert found["val_perplexity"] == pytest.approx(fmean(math.exp(loss) for loss, _ in expected.values()), rel=1e-3)


def test_roles_are_the_abilities_own_first(data: AbilityDataModule) -> None:
    assert validation_roles(data) == {"sums": "keep", "words": "recover", "verbs": "recover"}
    data.abilities["words"].role = "keep"
    assert validation_roles(data)["words"] == "keep"


def test_small_batches_count_after_millions_of_tokens() -> None:
    metric = AnswerTokens()
    metric.update(TokenScores(torch.tensor(2.0**24), torch.tensor(0), 2**23))
    for _ in range(8):
        metric.update(TokenScores(torch.tensor(0.5), torch.tensor(0), 1))
    assert metric.loss.dtype == torch.float64
    assert float(metric.loss) == 2**24 + 4
    assert {values.dtype for values in metric.compute().values()} == {torch.float32}


def test_metric_adds_up_over_processes() -> None:
    metric = AnswerTokens()
    metric.update(TokenScores(torch.tensor(6.0), torch.tensor(1), 3))
    metric.update(TokenScores(torch.tensor(0.0), torch.tensor(0), 0))
    assert {name: float(value) for name, value in metric.compute().items()} == {
        "loss": 2.0,
        "perplexity": pytest.approx(math.exp(2)),
        "accuracy": pytest.approx(1 / 3),
    }
    assert all(int(reduce(torch.tensor([2, 3]))) == 5 for reduce in metric._reductions.values())  # type: ignore[misc, operator]
