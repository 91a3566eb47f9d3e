"""Accumulation windows: the micro-batches of one update."""

from __future__ import annotations

import lightning as L


def window_is_complete(trainer: L.Trainer) -> bool:
    """Whether the micro-batch that has just ended was the last of its update, so that no gradient is left over."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()
