"""All that reaches past Lightning's public API, checked with lightning 2.6.6 on 2026-11-28.

Only overrides of private methods are elsewhere, in the subclass that needs them: ``LastCheckpoint`` and the CLI.
"""

from __future__ import annotations

import inspect
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

_Callback = TypeVar("_Callback")  # the class of callbacks, or one that they share


def resumes_from_checkpoint(trainer: L.Trainer) -> bool:
    """Whether the running ``fit`` resumes from a checkpoint; valid in every hook, ``setup`` included."""
    # Trainer.fit hands ckpt_path down as an argument and sets trainer.ckpt_path only when it restores, which is after
    # the callbacks' setup. Until then no object holds the path, only the frame of the running Trainer._run.
    for frame, _ in traceback.walk_stack(inspect.currentframe()):
        if frame.f_code is type(trainer)._run.__code__ and frame.f_locals["self"] is trainer:
            return bool(frame.f_locals["ckpt_path"])
    return bool(trainer.ckpt_path)


@contextmanager
def isolate_rng() -> Iterator[None]:
    """Restore the state of all random generators on exit; Lightning's ``isolate_rng`` does not after an exception."""
    states = _collect_rng_states()
    try:
        yield
    finally:
        _set_rng_states(states)


def accumulation_complete(trainer: L.Trainer) -> bool:
    """Whether the micro-batch that just ended was the last of its update, so that no gradient is pending."""
    # No hook follows an update: on_before_zero_grad and optimizer_step come before it.
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def is_last_batch_of_epoch(trainer: L.Trainer) -> bool:
    """Whether the micro-batch that just ended was the last of its epoch."""
    # Trainer.is_last_batch does not count batches, so it misses an end that limit_train_batches sets.
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def fix_epoch_count(trainer: L.Trainer) -> None:
    """Count the running epoch as started.

    Lightning does not, after resuming from the end of an epoch. The next checkpoint would then look like one from the
    end of an epoch, and a fit that resumes from it would repeat the epoch's first micro-batches.
    """
    progress: Any = trainer.fit_loop.epoch_progress
    for count in (progress.total, progress.current):
        count.ready = count.started = count.processed + 1
        count.completed = count.processed


def logging_step(trainer: L.Trainer) -> int | None:
    """The number of updates so far if loggers expect values now, else ``None``."""
    # ThroughputMonitor, the base of our callback, decides in the same way; global_step counts every optimizer's steps.
    if not trainer._logger_connector.should_update_logs:
        return None
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def callbacks_of(trainer: L.Trainer, kind: type[_Callback]) -> list[_Callback]:
    """The callbacks of a class in their order; ``Trainer`` does not declare the attribute."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def forget_handlers(trainer: L.Trainer) -> None:
    """Keep Lightning from restoring the handlers of SIGTERM and SIGINT that it found when it registered its own."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        trainer._signal_connector._original_handlers.pop(signum, None)


def grad_scaler(trainer: L.Trainer) -> torch.amp.GradScaler | None:
    """The loss scaler of ``16-mixed``; ``None`` in other precisions."""
    # Of the precision plugins only MixedPrecision and FSDPPrecision have the attribute.
    scaler: torch.amp.GradScaler | None = getattr(trainer.precision_plugin, "scaler", None)
    return scaler


def averaged_model(callback: WeightAveraging) -> nn.Module | None:
    """The averaged copy of the LightningModule that a callback holds; ``None`` before its ``setup``."""
    return None if callback._average_model is None else callback._average_model.module


def has_own_checkpoint_io(strategy: object) -> bool:
    """Whether a strategy from a config was given a ``checkpoint_io``; asking for the public property would make one."""
    return getattr(strategy, "_checkpoint_io", None) is not None


def load_sharded_checkpoint(folder: Path) -> dict[str, Any]:
    """All tensors in a folder of shards, whole; otherwise reachable only through ``python -m lightning.…``."""
    return _load_distributed_checkpoint(folder)
