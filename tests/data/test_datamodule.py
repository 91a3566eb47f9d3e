"""The data module by itself, from YAML, and in a Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from act_lightning.data.ability_data import AbilityData, EvaluationData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError
from tests.tiny import END_ID, PAD_ID, write_jsonl


def numbers(path: Path, start: int, stop: int) -> Path:
    rows = [{"prompt": f"n{i}", "answer": "x" * (i % 5 + 1)} for i in range(start, stop)]
    return write_jsonl(path, rows)


@pytest.fixture
def settings(tmp_path: Path, target_folder: Path) -> dict[str, Any]:
    """Two abilities of 6 and 4 rows, one evaluation set of 5."""
    return {
        "abilities": {
            "a": AbilityData(str(numbers(tmp_path / "a.jsonl", 0, 6))),
            "b": AbilityData(str(numbers(tmp_path / "b.jsonl", 6, 10))),
        },
        "evaluations": {"e": EvaluationData(str(numbers(tmp_path / "e.jsonl", 0, 5)), role="keep", max_new_tokens=8)},
        "template": "{prompt}:",
        "max_length": 40,
        "target": str(target_folder),
    }


def on_process(data: AbilityDataModule, rank: int, of: int) -> AbilityDataModule:
    data.trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": of})  # type: ignore[assignment]
    return data


def answer_counts(batches: list[dict[str, Tensor]]) -> list[int]:
    return [int((batch["labels"] != IGNORED).sum()) for batch in batches]


def test_reads_once_what_a_stage_needs(settings: dict[str, Any]) -> None:
    data = AbilityDataModule(**settings)
    data.prepare_data()
    data.setup("test")
    assert "tokenized" not in vars(data)
    data.setup("fit")
    first = data.tokenized
    data.setup("fit")
    assert data.tokenized is first
    assert {name: len(ability.samples) for name, ability in first.items()} == {"a": 6, "b": 4}
    assert data.tokenizer.eos_token_id == END_ID


def test_training_takes_every_sample_of_the_abilities_in_train(settings: dict[str, Any]) -> None:
    everything = sorted(answer_counts(list(AbilityDataModule(**settings).train_dataloader())))
    assert everything == sorted(i % 5 + 2 for i in range(10))  # letters and the end
    only_b = AbilityDataModule(**settings, train=["b"], batch_size=4, shuffle=False)
    (batch,) = only_b.train_dataloader()
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["labels"].shape == (4, 9)
    shares = [answer_counts(list(on_process(AbilityDataModule(**settings), r, 4).train_dataloader())) for r in range(4)]
    assert [len(share) for share in shares] == [3] * 4
    assert sorted(tokens for share in shares for tokens in share if tokens) == everything


def test_seed_decides_the_order(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def order() -> list[int]:
        return answer_counts(list(AbilityDataModule(**settings).train_dataloader()))

    unseeded = order()
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert order() != unseeded
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    assert order() == unseeded


def test_named_validation(settings: dict[str, Any]) -> None:
    data = AbilityDataModule(**settings, train=["a"], validation=["b", "a"])
    assert data.validation_names == ["b", "a"]
    b, a = data.val_dataloader()
    assert sum(answer_counts(list(b))) == data.tokenized["b"].tokens
    assert all(batch["input_ids"].numel() <= 40 for batch in a)
    assert AbilityDataModule(**settings).val_dataloader() == []


def test_held_out_share(settings: dict[str, Any]) -> None:
    data = AbilityDataModule(**settings, train=["a"], validation=0.34)
    assert data.validation_names == ["a"]
    assert {name: len(ability.samples) for name, ability in data.tokenized.items()} == {"a": 4, "b": 4}
    assert [sample.text for sample in data.held_out["a"].samples] == ["n4:xxxxx", "n5:x"]
    assert len(data.train_dataloader()) == 4


def test_prompts_on_several_processes(settings: dict[str, Any]) -> None:
    shares = [
        [batch for (loader,) in [on_process(AbilityDataModule(**settings), r, 3).test_dataloader()] for batch in loader]
        for r in range(3)
    ]
    assert [len(share) for share in shares] == [1] * 3
    batches = [share[0] for share in shares]
    assert [batch["prompts"] for batch in batches] == [["n0:", "n1:", "n2:"], ["n3:", "n4:"], []]
    assert [text for batch in batches for text in batch["references"]] == ["x", "xx", "xxx", "xxxx", "xxxxx"]
    assert batches[2]["input_ids"].shape[0] == 1  # takes part, and is not counted


def test_prompts_are_padded_on_the_left(settings: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": "long prompt", "answer": "b"}, {"prompt": "s", "answer": "a"}]
    settings["evaluations"]["e"].path = str(write_jsonl(tmp_path / "two.jsonl", rows))
    data = AbilityDataModule(**settings)
    ((batch,),) = data.predict_dataloader()
    assert data.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["long prompt:", "s:"]
    assert (batch["input_ids"][1][batch["attention_mask"][1] == 0] == PAD_ID).all()
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]


def test_all_faults_of_settings_at_once(settings: dict[str, Any]) -> None:
    settings["abilities"] |= {"..": AbilityData("no.jsonl", template="unknown"), "c/d": None}
    settings["evaluations"]["e"].max_new_tokens = 0
    wrong = {"train": ["a", "a", "z"], "validation": 1.5, "batch_size": 0, "max_length": 0, "template": "none"}
    data = AbilityDataModule(**(settings | wrong))
    expected = "abilities abilities....path abilities....template evaluations.e.max_new_tokens train train validation"
    expected += " batch_size max_length template"
    for step in (data.prepare_data, data.setup):
        with pytest.raises(ActError) as caught:
            step()
        assert sorted(issue.setting for issue in caught.value.issues) == sorted(
            f"data.{name}" for name in expected.split()
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"abilities": {}}, "data.abilities = {}: must hold an ability"),
        ({"train": []}, "data.train = []: must name an ability"),
        ({"validation": ["z"]}, "data.validation = 'z': must be one of data.abilities: a, b"),
        ({"validation": 0}, "must lie in (0, 1)"),
        ({"target": ""}, "data.target = '': must name the model"),
    ],
)
def test_issues(settings: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ActError) as caught:
        AbilityDataModule(**(settings | changes)).setup()
    assert message in str(caught.value)


def test_faults_of_several_files_come_together(settings: dict[str, Any]) -> None:
    for name in "ab":
        Path(settings["abilities"][name].path).write_text("{\n")
    with pytest.raises(ActError, match=r"(?s)a\.jsonl:1.*b\.jsonl:1"):
        AbilityDataModule(**settings).setup("fit")


def test_nothing_to_work_on(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["evaluations"]["e"].path = str(write_jsonl(tmp_path / "e2.jsonl", [{"prompt": "a", "answer": ""}]))
    with pytest.raises(ActError, match=r"data\.evaluations\.e = .*must end with a reference answer"):
        AbilityDataModule(**settings).setup("test")
    with pytest.raises(ActError, match=r"data\.validation = \[\]: must name something to validate on"):
        AbilityDataModule(**settings).setup("validate")
    with pytest.raises(ActError, match="must hold a set to test or predict on"):
        AbilityDataModule(**(settings | {"evaluations": {}})).test_dataloader()


def test_settings_from_yaml(settings: dict[str, Any]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AbilityDataModule, "data")
    a, e = settings["abilities"]["a"].path, settings["evaluations"]["e"].path
    text = {
        "abilities": {"a": {"path": a, "limit": 2}, "b": None},
        "evaluations": {"e": {"path": e, "role": "recover"}},
    }
    parsed = parser.parse_object({"data": {**text, "validation": 0.5, "target": settings["target"]}})
    assert json.loads(parser.dump(parsed, format="json"))["data"]["template"] == "chat"
    data = parser.instantiate(parsed).data
    data.setup()
    assert (list(data.tokenized), data.tokenized["a"].rows, data.evaluation_names) == (["a"], 1, ["e"])
    assert data.evaluations["e"].role == "recover"


class Recorder(L.LightningModule):
    """Notes the batches that a Trainer hands it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: dict[int, list[int]] = {}
        self.validated: list[tuple[int, int]] = []
        self.tested: list[str] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.epochs.setdefault(self.current_epoch, []).extend(answer_counts([batch]))
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated.append((dataloader_idx, len(batch["labels"])))

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.tested += batch["references"]

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[str]:
        return list(batch["prompts"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("validation", [["b"], 0.5, []])
def test_in_a_trainer(settings: dict[str, Any], tmp_path: Path, validation: list[str] | float) -> None:
    data, module = AbilityDataModule(**settings, train=["a"], validation=validation), Recorder()
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(module, data)
    first, second = module.epochs.values()
    assert sorted(first) == sorted(second) == sorted(answer_counts(list(data.train_dataloader())))
    assert first != second or validation == 0.5  # shuffled anew; three samples may fall alike
    assert sum(rows for _, rows in module.validated) > 0 if validation else not module.validated
    trainer.test(module, data, verbose=False)
    assert sorted(module.tested) == ["x", "xx", "xxx", "xxxx", "xxxxx"]
    predictions = trainer.predict(module, data)
    assert predictions is not None
    assert [text for batch in predictions for text in batch] == ["n0:", "n1:", "n2:", "n3:", "n4:"]
