"""Lightning's ``WeightAveraging`` beside a transfer: it copies the model in ``setup``, before anything is injected."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn


def averages(trainer: L.Trainer) -> Iterator[nn.Module]:
    """The averaged copies of the model that callbacks of this trainer hold."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        copy = getattr(callback, "_average_model", None)
        if isinstance(callback, WeightAveraging) and copy is not None:
            yield copy.module


@torch.no_grad()
def start_averages_from(trainer: L.Trainer, module: nn.Module) -> None:
    """Give every average the values of ``module``.

    An average that is validated, or exported, before its first update would else be the model without the transfer.
    """
    for average in averages(trainer):
        for copied, current in zip(_values(average), _values(module), strict=True):
            copied.copy_(current)


def _values(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
