"""Averages of weights, which Lightning keeps of whole models only."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from act_lightning.errors import Fault


def averaging_faults(trainer: L.Trainer) -> list[Fault]:
    """The fault of a ``WeightAveraging`` under a strategy that shards: its setup builds and copies the whole model."""
    if not isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
        return []
    rule = "must not stand beside a strategy that shards: it builds and copies the whole model on every process"
    remedy = "Average on one device or under ddp, or leave it out."
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    names = [type(callback).__name__ for callback in callbacks if isinstance(callback, WeightAveraging)]
    return [Fault("trainer.callbacks", name, rule, remedy) for name in names]
