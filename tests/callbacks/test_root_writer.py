"""Fits in someone else's training loop: two in one folder do not harm each other."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
import pytest

import act_lightning.callbacks
from act_lightning.callbacks import (
    AbilitySource,
    ActivationDifferenceProfiler,
    LastCheckpoint,
    MaskedTaskVectorInjection,
    PreemptionCheckpoint,
)
from act_lightning.callbacks.root_writer import RootWriter
from act_lightning.checkpoints.lock import holds_root
from act_lightning.errors import ActError
from tests.callbacks.test_plugin import TheirModule, loader
from tests.checkpoints.test_lock import another_process
from tests.cli.test_replacing import Failing
from tests.front_door import left
from tests.loops import quiet_trainer


class Watcher(L.Callback):
    """Notes whether the folder was locked in training."""

    locked = False

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.locked = holds_root(Path(trainer.default_root_dir))


def fit(folder: Path, root: Path, *callbacks: L.Callback) -> None:
    quiet_trainer(root, *callbacks, enable_checkpointing=True).fit(TheirModule(folder), loader())


def test_a_second_start_is_refused(tmp_path: Path, target_folder: Path, source_folder: Path) -> None:
    root, watcher = tmp_path / "run", Watcher()
    source = AbilitySource(str(source_folder), abilities={"d": loader()}, name="s")
    callbacks = [
        PreemptionCheckpoint(),
        watcher,
        LastCheckpoint(),
        ActivationDifferenceProfiler([source]),
        MaskedTaskVectorInjection(ratio=0.1),
    ]
    with another_process("lock_root", root) as process:
        (root / ".last.ckpt.tmp-1-ff").write_text("of the other process")
        before = left(root)
        with pytest.raises(ActError, match=f"process {process.pid} on .* has been running `fit` there"):
            fit(target_folder, root, *callbacks)
        assert left(root) == before
    fit(target_folder, root, *callbacks)
    assert watcher.locked
    with pytest.raises(RuntimeError, match="in the first update"):
        fit(target_folder, root, *callbacks, Failing())
    assert not holds_root(root)
    assert [name for name in left(root) if re.search("lock|tmp", name)] == []
    assert (root / "scores" / "s" / "d.safetensors").is_file()


def test_every_callback_that_writes_locks() -> None:
    others = {"AbilitySource", "FailTogether", "LoopProgress", "LostUpdates", "TokenThroughput"}
    names = set(act_lightning.callbacks.__all__) - others
    assert [name for name in names if not issubclass(getattr(act_lightning.callbacks, name), RootWriter)] == []
