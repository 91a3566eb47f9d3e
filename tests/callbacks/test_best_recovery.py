"""Which model of a fit is kept, against the values that validations logged."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.module import AbilityTransferModule
from tests.front_door import Config, basic, changed, run
from tests.loops import quiet_trainer
from tests.tiny import write_jsonl

CALLBACK = {"class_path": "act_lightning.callbacks.BestRecovery", "init_args": {"keep_within": 100}}


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path) -> Config:
    """Four updates, a validation after each, a checkpoint of each that the metric prefers."""
    kept = write_jsonl(tmp_path / "kept.jsonl", [{"prompt": f"Say {i}", "answer": "one two"} for i in range(32)])
    lost = write_jsonl(tmp_path / "lost.jsonl", [{"prompt": f"Tell {i}", "answer": "three four"} for i in range(32)])
    config = basic(tmp_path, target_folder, source_folder, kept)
    config["data"]["abilities"] = {
        "d": {"path": str(kept), "role": "keep"},
        "r": {"path": str(lost), "role": "recover"},
    }
    config["data"] |= {"train": ["d", "r"], "validation": ["d", "r"]}
    config["trainer"] |= {"val_check_interval": 16, "num_sanity_val_steps": 0, "callbacks": [CALLBACK]}
    return changed(config, "model.learning_rate", 1.0e-2)


def logged(root: Path, name: str) -> list[float]:
    (file,) = root.glob("logs/version_*/metrics.csv")
    return [float(row[name]) for row in csv.DictReader(file.read_text().splitlines()) if row.get(name)]


def validated(root: Path, target: Path, config: Config) -> dict[str, float]:
    """What a validation of a model finds."""
    abilities = {name: AbilityData(**one) for name, one in config["data"]["abilities"].items()}
    data = AbilityDataModule(abilities=abilities, validation=["d", "r"], target=str(target))
    found = quiet_trainer(root).validate(AbilityTransferModule(str(target)), data, verbose=False)
    return {name: value for of_set in found for name, value in of_set.items()}


def test_keeps_the_model_of_the_best_validation(config: Config, tmp_path: Path) -> None:
    outcome = run("fit", config)
    assert outcome.status == 0, outcome.err
    root = tmp_path / "run"
    values = logged(root, "val_recover_within_keep")
    assert len(values) == 4
    assert values == logged(root, "val_recover_accuracy"), "a hundred points may go"
    assert validated(tmp_path, root / "best", config)["val_recover_accuracy"] == pytest.approx(max(values))
    assert (root / "best" / "README.md").is_file()


def test_below_the_floor_the_nearest_to_it_is_best(config: Config, tmp_path: Path, target_folder: Path) -> None:
    """The target knows "kept" by heart, and loses it to a rate that is too high."""
    learned = changed(config, "trainer.callbacks", [])
    learned = changed(changed(learned, "profile.sources", None), "trainer.default_root_dir", str(tmp_path / "knows"))
    learned = changed(changed(learned, "data.train", ["d"]), "trainer.max_epochs", 3)
    assert run("fit", changed(learned, "trainer.val_check_interval", 1.0)).status == 0
    target = tmp_path / "knows" / "model"
    before = validated(tmp_path, target, config)["val_keep_accuracy"]
    assert before > 0.9
    lossy = changed(changed(config, "model.target", str(target)), "model.learning_rate", 0.3)
    lossy = changed(lossy, "trainer.callbacks.0.init_args.keep_within", 2.5)
    outcome = run("fit", lossy)
    assert outcome.status == 0, outcome.err
    root = tmp_path / "run"
    values, keep = logged(root, "val_recover_within_keep"), logged(root, "val_keep_accuracy")
    expected = [k - (before - 0.025) if k < before - 0.025 else None for k in keep]
    assert any(one is not None for one in expected)
    assert all(
        one is None or value == pytest.approx(one, abs=1e-6) for value, one in zip(values, expected, strict=True)
    )
    kept = validated(tmp_path, root / "best", config)["val_keep_accuracy"]
    assert kept == pytest.approx(keep[values.index(max(values))], abs=1e-6)


def test_the_target_is_measured_before_the_transfer_and_the_fit_is_the_same(config: Config, tmp_path: Path) -> None:
    measured = changed(config, "transfer", {"ratio": 0.5, "scale": 1.0})
    assert run("fit", measured).status == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = (state for name, state in checkpoint["callbacks"].items() if "BestRecovery" in name)
    expected = validated(tmp_path, Path(config["model"]["target"]), config)["val_keep_accuracy"]
    assert state["baseline"] == pytest.approx(expected)
    plain = changed(changed(measured, "trainer.callbacks", []), "trainer.default_root_dir", str(tmp_path / "plain"))
    assert run("fit", plain).status == 0
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "plain"))
    assert all(torch.equal(ours[name], values) for name, values in theirs.items())


def test_what_cannot_work_is_said_first(config: Config, tmp_path: Path) -> None:
    without = changed(config, "data.abilities.r.role", ...)
    outcome = run("fit", changed(without, "trainer.callbacks.0.init_args.keep_within", -1))
    assert outcome.status == 1
    assert "keep_within = -1.0: must lie in [0, 100]" in outcome.err
    assert "data.validation = ['d', 'r']: must hold a set with role recover for BestRecovery" in outcome.err
    assert not (tmp_path / "run").exists()
