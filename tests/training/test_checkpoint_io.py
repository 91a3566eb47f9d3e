"""Checkpoints of a fit: whole or not there, in place when complete, with nothing in them that runs code."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from act_lightning.callbacks import LastCheckpoint, PreemptionCheckpoint
from act_lightning.callbacks.preemption import exiting_at_signals
from act_lightning.errors import ActError
from act_lightning.training.checkpoint_io import TrainingStateIO, save_whole
from tests.front_door import basic, changed, left, run
from tests.loops import PlainModule, messages, padded, quiet_trainer, random_samples
from tests.tiny import tiny_model


class Opening:
    """Does something when it is unpickled, as whoever sends a checkpoint may wish."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@contextmanager
def no_file_larger(size: int) -> Iterator[None]:
    """As on a disk that is full: a write past ``size`` bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    io, place = TrainingStateIO(), tmp_path / "checkpoints" / "last.ckpt"
    io.save_checkpoint({"state_dict": {"w": torch.arange(3)}}, place)
    with no_file_larger(50_000), pytest.raises(ActError, match=r"last\.ckpt.*must be writable"):
        io.save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, place)
    assert left(place.parent) == ["last.ckpt"]
    assert torch.equal(io.load_checkpoint(place)["state_dict"]["w"], torch.arange(3))


def batches(samples: int) -> DataLoader[Any]:
    """Of four samples each."""
    return DataLoader(padded(random_samples(samples)), batch_size=None)  # type: ignore[arg-type]


def trained(root: Path, *callbacks: L.Callback, plugin: bool = True) -> L.Trainer:
    """A Trainer that has run two updates."""
    ours = [TrainingStateIO()] if plugin else None
    trainer = quiet_trainer(root, *callbacks, enable_checkpointing=True, limit_val_batches=0, plugins=ours)
    trainer.fit(PlainModule(tiny_model("llama").train()), batches(8))
    return trainer


@pytest.mark.parametrize("plugin", [True, False], ids=["our files", "lightning's"])
def test_a_full_disk_in_a_fit(tmp_path: Path, plugin: bool) -> None:
    trained(tmp_path, LastCheckpoint(), plugin=plugin)
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    with (
        no_file_larger(len(before) // 2),
        pytest.raises(ActError, match=r"checkpoint = .*is the one before; free some"),
    ):
        trained(tmp_path, LastCheckpoint(), plugin=plugin)
    assert left(tmp_path / "checkpoints") == ["last.ckpt"]
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".last.ckpt.tmp-1-aa").write_bytes(b"half")
    trained(tmp_path, LastCheckpoint())
    assert left(tmp_path / "checkpoints") == ["last.ckpt"]


class Folders(TrainingStateIO):
    """A checkpoint as a folder, as strategies that shard write it."""

    def save_checkpoint(self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None) -> None:
        Path(path).mkdir(parents=True)
        super().save_checkpoint(checkpoint, Path(path) / "all.pt")


def test_whenever_a_folder_is_replaced_a_complete_one_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = quiet_trainer(tmp_path, plugins=[Folders()], max_steps=1, limit_val_batches=0)
    trainer.fit(PlainModule(tiny_model("llama").train()), batches(4))
    place = tmp_path / "checkpoints" / "last.ckpt"
    save_whole(trainer, place)
    found = []
    replace = os.replace

    def look(old: Path, new: Path) -> None:
        replace(old, new)
        names = LastCheckpoint()._find_last_checkpoints(trainer)
        found.append(bool(names) and all((Path(name) / "all.pt").is_file() for name in names))

    monkeypatch.setattr(os, "replace", look)
    save_whole(trainer, place)
    assert found == [True] * len(found) != [], "after every step there is one, and none that is not complete"
    assert left(place.parent) == ["last.ckpt", "last.ckpt/all.pt"]


def test_what_may_be_in_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "x": Opening(tmp_path / "opened")}, tmp_path / "bad.ckpt")
    with pytest.raises(ActError, match="must hold nothing but tensors and plain values"):
        TrainingStateIO().load_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "opened").exists()
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "bad.ckpt").read_bytes()[:300])
    with pytest.raises(ActError, match="must be a checkpoint of a fit that can be read"):
        TrainingStateIO().load_checkpoint(tmp_path / "cut.ckpt")


def test_a_fit_opens_no_objects(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> None:
    config = basic(tmp_path, target_folder, source_folder, ability_file)
    assert run("fit", config).status == 0
    place = tmp_path / "run" / "checkpoints" / "last.ckpt"
    found = torch.load(place, weights_only=True)
    torch.save(found | {"x": Opening(tmp_path / "opened")}, place)
    outcome = run("fit", config, "--ckpt_path", place, "--trainer.max_epochs", 2)
    assert outcome.status == 1
    assert "nothing but tensors and plain values" in outcome.err
    assert not (tmp_path / "opened").exists()


def test_the_newest_is_the_last(tmp_path: Path) -> None:
    """Those that Lightning writes when SLURM asks for the machine are looked for as well."""
    trainer = trained(tmp_path, last := LastCheckpoint())
    trainer.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    names = {Path(path).name for path in last._find_last_checkpoints(trainer)}
    assert names == {"last.ckpt", "hpc_ckpt_1.ckpt"}


def test_how_often(tmp_path: Path) -> None:
    class Counting(TrainingStateIO):
        written = 0

        def save_checkpoint(self, *arguments: Any, **settings: Any) -> None:
            Counting.written += 1
            super().save_checkpoint(*arguments, **settings)

    for given, written in (({}, 1), ({"every_n_updates": 2}, 3), ({"every_n_minutes": 1e-9}, 5)):
        Counting.written = 0
        trainer = quiet_trainer(tmp_path, LastCheckpoint(**given), enable_checkpointing=True, plugins=[Counting()])  # type: ignore[arg-type]
        trainer.fit(PlainModule(tiny_model("llama").train()), batches(20))
        assert Counting.written == written, f"of five updates, and in any case the end: {given}"


@pytest.mark.parametrize(
    "wrong", [{"every_n_updates": 0}, {"every_n_minutes": -1.0}, {"every_n_minutes": float("nan")}]
)
def test_wrong_intervals(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ActError, match=r"LastCheckpoint\.every_n_\w+ = .*: must be more than 0"):
        trained(tmp_path, LastCheckpoint(**wrong))  # type: ignore[arg-type]


def test_where_there_is_none_it_is_said(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, LastCheckpoint(), enable_checkpointing=True, limit_val_batches=0)
    with messages() as said, pytest.warns(UserWarning, match="there is no last checkpoint"):
        trainer.fit(
            PlainModule(tiny_model("llama").train()),
            batches(4),
            ckpt_path="last",
        )
    assert f"no checkpoint in {tmp_path / 'checkpoints'} yet: the fit starts from the beginning" in said


def test_told_to_stop_in_a_loop_of_someone_elses(tmp_path: Path) -> None:
    """Without a callback that keeps checkpoints, one is written all the same; the handler from before is back."""

    class Telling(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: nn.Module, batch: object, batch_idx: int) -> None:
            if batch_idx == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    trainer = quiet_trainer(tmp_path, PreemptionCheckpoint(), Telling(), accumulate_grad_batches=2)
    with pytest.raises(SystemExit) as leaving:
        trainer.fit(PlainModule(tiny_model("llama").train()), batches(24))
    assert leaving.value.code == 143
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2, (
        "the window that has begun is finished"
    )
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


def test_told_to_stop_before_the_first_update(tmp_path: Path) -> None:
    """As while a comparison evaluates its models: nothing is trained yet, so there is nothing to wait for."""

    class Telling(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: nn.Module) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it goes on")

    trainer = quiet_trainer(tmp_path, PreemptionCheckpoint(), Telling())
    with pytest.raises(SystemExit) as leaving:
        trainer.fit(PlainModule(tiny_model("llama").train()), batches(4))
    assert leaving.value.code == 143
    assert not (tmp_path / "checkpoints").exists()


def test_a_stop_that_a_finalizer_has_swallowed(tmp_path: Path) -> None:
    """Python ignores what a finalizer raises; the program stops all the same, and cleans up undisturbed."""

    class Ending:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    cleaned, before = [], (signal.getsignal(signal.SIGALRM), sys.unraisablehook)

    def work() -> None:
        with exiting_at_signals(quiet_trainer(tmp_path)):
            try:
                Ending()
                time.sleep(30)
            finally:
                time.sleep(1.2)
                cleaned.append(True)

    with pytest.raises(SystemExit) as leaving:
        work()
    assert leaving.value.code == 143
    assert cleaned
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert (signal.getsignal(signal.SIGALRM), sys.unraisablehook) == before


def test_a_config_may_say_how_often(
    tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path
) -> None:
    kept = {"class_path": "act_lightning.callbacks.LastCheckpoint", "init_args": {"dirpath": str(tmp_path / "here")}}
    config = changed(basic(tmp_path, target_folder, source_folder, ability_file), "trainer.callbacks", [kept])
    assert run("fit", config).status == 0
    assert left(tmp_path / "here") == ["last.ckpt"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    with messages() as said:
        assert run("fit", config, "--ckpt_path", "last").status == 0
    assert not any("starts from the beginning" in line for line in said)
