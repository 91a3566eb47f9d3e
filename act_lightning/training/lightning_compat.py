"""Everything that reaches into Lightning past its public API, with the reason."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng


@contextmanager
def rng_as_before() -> Iterator[None]:
    """Lightning's ``isolate_rng``, which restores nothing after an error, made to restore it then too."""
    isolation = isolate_rng()
    with ExitStack() as stack:
        isolation.__enter__()
        stack.callback(isolation.__exit__, None, None, None)
        yield


def resumes_from_checkpoint(trainer: L.Trainer) -> bool:
    """Whether the running ``fit`` was given a checkpoint to resume from."""
    running = getattr(type(trainer), "_run").__code__  # noqa: B009 - a private name
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is running and frame.f_locals.get("self") is trainer:
            return bool(frame.f_locals.get("ckpt_path"))
        frame = frame.f_back
    return bool(trainer.ckpt_path)


def window_is_complete(trainer: L.Trainer) -> bool:
    """Whether the micro-batch that has just ended was the last of its update, so that no gradient is left over."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def epoch_is_over(trainer: L.Trainer) -> bool:
    """Whether the micro-batch that has just ended was the last of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def mend_epoch_count(trainer: L.Trainer) -> None:
    """Count an epoch whose micro-batches are being given as begun.

    Lightning 2.6 does not, when it has resumed from the end of the epoch before; a checkpoint would then seem to be of
    the end of an epoch, and a fit that resumes from it would give the epoch's first micro-batches again.
    """
    counts: Any = trainer.fit_loop.epoch_progress
    for count in (counts.total, counts.current):
        count.ready = count.started = count.processed + 1
        count.completed = count.processed
