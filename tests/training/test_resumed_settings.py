"""A fit that resumes with other settings is refused or warned of; one that would ruin its weights stops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from act_lightning.module import AbilityTransferModule
from act_lightning.training.optimizers import are_finite
from tests.front_door import Config, basic, changed, left, run
from tests.tiny import tiny_tokenizer, write_jsonl


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    return basic(tmp_path, target_folder, source_folder, ability_file)


REFUSED = [
    ("transfer.ratio", 0.2, "transfer.ratio of source s = 0.2: must be 0.1 as before the checkpoint"),
    ("transfer.scale", 0.5, "transfer.scale of source s = 0.5: must be 0.4 as before the checkpoint"),
    ("transfer.method", "ties", "transfer.method = 'ties': must be task_arithmetic as before the checkpoint"),
    ("profile.sources.0.name", "t", r"profile.sources = ['t']: must be ['s'] as before the checkpoint"),
    ("profile", ..., "profile.sources = []: must be ['s'] as before the checkpoint"),
    ("model.learning_rate", 1e-4, "model.learning_rate = 0.0001: must be 0.001 as before the checkpoint"),
    ("model.optimizer", "adamw", "model.optimizer = 'adamw': must be 'adam' as before the checkpoint"),
]


def test_settings_without_effect_are_refused(config: Config) -> None:
    assert run("fit", config).status == 0
    for path, value, message in REFUSED:
        outcome = run("fit", changed(config, path, value), "--ckpt_path", "last", "--trainer.max_epochs", 2)
        assert outcome.status == 1, path
        assert message in outcome.err
    unchanged = run("fit", config, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert unchanged.status == 0, unchanged.err


def test_a_transfer_into_a_fit_that_had_none_is_refused(config: Config) -> None:
    plain = changed(config, "profile", ...)
    assert run("fit", plain).status == 0
    outcome = run("fit", config, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert outcome.status == 1
    assert "profile.sources = ['s']: must be none as before the checkpoint" in outcome.err


def test_other_data_and_updates_are_told(config: Config, tmp_path: Path) -> None:
    assert run("fit", config).status == 0
    other = write_jsonl(tmp_path / "other.jsonl", ({"prompt": f"x {i}", "answer": "y"} for i in range(24)))
    config = changed(config, "data.abilities.d.path", str(other))
    config = changed(config, "trainer.accumulate_grad_batches", 8)
    with pytest.warns(UserWarning, match="resumes with other") as told:
        assert run("fit", config, "--ckpt_path", "last", "--trainer.max_epochs", 2).status == 0
    said = [str(one.message) for one in told]
    assert any("other samples an update than before: 16, now 8" in line for line in said)
    assert any("other data than before: d " in line for line in said)


seen: dict[str, torch.Tensor] = {}


class Spoiling(L.Callback):
    """Makes a weight, or a gradient, NaN when the second update begins."""

    def __init__(self, gradient: bool) -> None:
        self.gradient = gradient

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 17 and not self.gradient:
            pl_module.model.lm_head.weight.data[5, 3] = math.nan
            seen["ids"] = batch["input_ids"][0]

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 1 and self.gradient:
            next(pl_module.parameters()).grad[0, 0] = math.inf  # type: ignore[index]


@pytest.mark.parametrize(
    ("gradient", "said"),
    [
        (False, "update 2, in micro-batch 17 of the epoch (sample {} of d, 'user Say {}) = 'loss nan': must be finite"),
        (True, "update 2 = 'gradients that are NaN or infinite': must be finite"),
    ],
)
def test_an_update_that_would_ruin_the_weights(config: Config, gradient: bool, said: str) -> None:
    """Nothing is exported, and no checkpoint of it is kept."""
    spoiling = {"class_path": "tests.training.test_resumed_settings.Spoiling", "init_args": {"gradient": gradient}}
    outcome = run("fit", changed(config, "trainer.callbacks", [spoiling]))
    assert outcome.status == 1
    if not gradient:
        text = tiny_tokenizer().decode(seen["ids"], skip_special_tokens=True)
        (number,) = [row for row in range(24) if f" {row} times" in text]
        said = said.format(number, repr(" ".join(text.split())[9:60])[1:])
    assert said in outcome.err
    root = Path(config["trainer"]["default_root_dir"])
    assert not (root / "model").exists()
    assert left(root / "checkpoints") == []


def test_finite() -> None:
    whole = [torch.ones(3), torch.zeros(0), torch.full((2, 2), 3e38)]
    assert are_finite(whole)
    assert are_finite([])
    for bad in (math.nan, math.inf, -math.inf):
        assert not are_finite([*whole, torch.tensor([1.0, bad])])
        assert not are_finite([torch.tensor([bad], dtype=torch.bfloat16)])


def test_without_a_trainer_of_ours_a_checkpoint_tells_the_optimizer(target_folder: Path) -> None:
    module = AbilityTransferModule(str(target_folder), learning_rate=0.5)
    module.trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    module.on_save_checkpoint(checkpoint := {})
    assert checkpoint == {"act_lightning settings": {"learning_rate": 0.5, "optimizer": "adam", "lr_scheduler": None}}
