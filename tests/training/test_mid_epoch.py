"""Fits that are broken off in the middle of an epoch and go on with the next sample."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError
from act_lightning.module import AbilityTransferModule
from tests.loops import quiet_trainer
from tests.programs import PROGRAMS
from tests.reference.act import assert_same_bits
from tests.tiny import write_jsonl

SETTINGS: dict[str, Any] = {"accumulate_grad_batches": 4, "max_epochs": 2, "limit_val_batches": 0}


class Saver(L.Callback):
    """Writes a checkpoint after one micro-batch, counted over all epochs; what was read goes on a list."""

    def __init__(self, after: int, dies: bool = False) -> None:
        self.after, self.dies = after, dies
        self.read: list[list[int]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.read.append(batch["input_ids"].flatten().tolist())
        if self.dies and len(self.read) == self.after:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "saved.ckpt")
            raise KeyError("killed")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.dies and len(self.read) == self.after:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "saved.ckpt")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """22 rows: in micro-batches of 2, two whole windows and one of three micro-batches."""
    return write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"say {i}", "answer": "x" * (i % 9 + 1)} for i in range(22)])


def fit(file: Path, target: Path, *callbacks: L.Callback, path: Path | None = None, **data: Any) -> dict[str, Any]:
    """The weights after a fit."""
    torch.manual_seed(0)
    module = AbilityTransferModule(str(target), learning_rate=1.0e-3)
    ours = AbilityDataModule({"d": AbilityData(str(file))}, batch_size=2, target=str(target), **data)
    quiet_trainer(file.parent, *callbacks, **SETTINGS).fit(module, ours, ckpt_path=path)
    return {name: values.detach() for name, values in module.named_parameters()}


@pytest.mark.parametrize("packing", ["auto", False])
@pytest.mark.parametrize(
    ("after", "again"),
    [(4, 0), (6, 2), (8, 0), (11, 0), (15, 0), (22, 0)],
    ids=["an update", "half an update", "two updates", "an epoch", "in the second", "the end"],
)
def test_one_that_goes_on_equals_one_at_a_stretch(
    after: int, again: int, packing: Any, file: Path, target_folder: Path
) -> None:
    """To the bit; a checkpoint holds no gradients, so an update that was begun begins anew."""
    straight, first, second = Saver(0), Saver(after), Saver(0)
    expected = fit(file, target_folder, straight, packing=packing)
    fit(file, target_folder, first, packing=packing)
    found = fit(file, target_folder, second, path=file.parent / "saved.ckpt", packing=packing)
    assert_same_bits(found, expected)
    assert second.read == straight.read[after - again :]


def test_what_an_exception_broke_off_is_read_again(file: Path, target_folder: Path) -> None:
    straight, second = Saver(0), Saver(0)
    expected = fit(file, target_folder, straight)
    with pytest.raises(KeyError, match="killed"):
        fit(file, target_folder, Saver(8, dies=True))  # when it has read the last micro-batch of the second update
    found = fit(file, target_folder, second, path=file.parent / "saved.ckpt")
    assert_same_bits(found, expected)
    assert second.read == straight.read[4:]


def test_the_rest_of_another_epoch_is_refused(file: Path, target_folder: Path) -> None:
    fit(file, target_folder, Saver(8))
    with pytest.raises(ActError, match=r"ckpt_path = 'epoch 0, after 16 samples': must give the samples in the order"):
        fit(file, target_folder, path=file.parent / "saved.ckpt", shuffle=False)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "behind", "after"), [(1, 4, 2), (2, 3, 1)])
def test_with_another_number_of_processes(
    before: int, behind: int, after: int, file: Path, target_folder: Path
) -> None:
    """After the first update of four micro-batches, or in the midst of the second: the same updates."""
    expected = fit(file, target_folder)
    script = PROGRAMS / "mid_epoch_fit.py"
    run_script(script, target_folder, file, before, behind)
    run_script(script, target_folder, file, after, 0, file.with_name("saved.ckpt"))
    found = load_file(file.with_name("weights.safetensors"))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=2e-6)


def run_script(*command: object) -> None:
    """A program of Python's that starts the second process itself."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
