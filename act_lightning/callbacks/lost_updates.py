"""How many weights an update was meant for and did not change, because it was rounded away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_SAMPLED = 4096  # elements of a parameter: enough for a share to the percent, and no time


class LostUpdates(L.Callback):
    """Log ``lost_updates``: the share of weights with a gradient that an update leaves as they were, to the bit.

    bfloat16 keeps 8 bits of a weight: an update below 1/512 of it, or even 1/256, is rounded away. At a learning rate
    of 2e-5, Adam's updates are, for most weights. Float32 weights (``bf16-mixed``), or an optimizer that rounds at
    random, keep them. Some 4,096 weights of every parameter are looked at, on each process its own.
    """

    def __init__(self) -> None:
        self._before: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Remember some weights of each parameter, and which of them have a gradient."""
        self._before = [
            (parameter, _some(parameter).clone(), _some(parameter.grad) != 0)
            for parameter in pl_module.parameters()
            if parameter.grad is not None
        ]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - whatever a training step gives
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Compare after an update, and log."""
        if self._before:
            counts = torch.stack(list(self._counts())).sum(0)
            self._before = []
            lost, due = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
            pl_module.log("lost_updates", lost / max(due, 1))

    def _counts(self) -> Iterator[Tensor]:
        """For each parameter, float32 ``[2]``: weights that stayed though they have a gradient, and all that have."""
        for parameter, before, due in self._before:
            lost = due & (_some(parameter) == before)
            yield torch.stack([lost.sum(), due.sum()]).float()


def _some(values: Tensor) -> Tensor:
    """Evenly spaced elements of this process's part of a tensor."""
    local = (values.to_local() if isinstance(values, DTensor) else values).detach().flatten()
    return local[:: max(1, local.numel() // _SAMPLED)]
