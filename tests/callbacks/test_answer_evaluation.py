"""The callback in a loop of somebody else's, against the verb `test`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from act_lightning.callbacks import AnswerEvaluation
from act_lightning.data.ability_data import EvaluationData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError
from act_lightning.module import AbilityTransferModule
from tests.loops import PlainModule, padded, quiet_trainer, random_samples
from tests.tiny import save_model, tiny_model, tiny_tokenizer, write_jsonl


def evaluations(folder: Path, target: str, **columns: str) -> AbilityDataModule:
    path = write_jsonl(folder / "set.jsonl", [{"prompt": f"Say {number}", "answer": "3"} for number in range(5)])
    settings = EvaluationData(str(path), columns=columns or None, role="keep", kind="number", max_new_tokens=4)
    return AbilityDataModule(evaluations={"set": settings}, target=target)


def test_writes_what_a_test_of_the_same_model_writes(tmp_path: Path) -> None:
    target = str(save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "target"))
    callback = AnswerEvaluation(evaluations(tmp_path, target))
    theirs = PlainModule(tiny_model("llama").train())
    quiet_trainer(tmp_path / "fit", callback).fit(theirs, DataLoader(padded(random_samples(4)), batch_size=None))
    assert theirs.net.training
    quiet_trainer(tmp_path / "test").test(AbilityTransferModule(target), evaluations(tmp_path, target), verbose=False)
    for name in ("set.jsonl", "results.csv", "results.md"):
        first, second = (tmp_path / run / "evaluations" / name for run in ("fit", "test"))
        assert first.read_bytes() == second.read_bytes()
    assert json.loads((tmp_path / "fit" / "evaluations" / "results.json").read_text())["sets"]["set"]["total"] == 5
    assert callback.results["set"].total == 5


def test_what_is_wrong_shows_before_the_fit(tmp_path: Path) -> None:
    target = str(save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "target"))
    module, batches = PlainModule(tiny_model("llama")), DataLoader(padded(random_samples(4)), batch_size=None)
    bad = evaluations(tmp_path, target, prompt="prompt", answer="{prompt}")
    for callback, problem in (
        (AnswerEvaluation(), "must be an AbilityDataModule"),
        (AnswerEvaluation(bad), "can match"),
    ):
        with pytest.raises(ActError, match=problem):
            quiet_trainer(tmp_path, callback).fit(module, batches)
