"""Accumulation windows, the micro-batches of one update; and Lightning's count of epochs while they are given."""

from __future__ import annotations

from typing import Any

import lightning as L


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
