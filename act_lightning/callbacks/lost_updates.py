"""The share of weights that an update should change but does not, because the change is rounded away."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_SAMPLED = 4096  # elements of a parameter: enough for one percent of accuracy, in no time


class LostUpdates(L.Callback):
    """Log ``lost_updates``: the share of weights with a gradient that an update leaves unchanged, to the bit.

    bfloat16 keeps 8 bits of a weight: an update below 1/512 of it, or even 1/256, is rounded away. At a learning rate
    of 2e-5, Adam's updates are that small for most weights. Float32 weights (``bf16-mixed``) keep them, as do
    optimizers that round at random. About 4,096 weights of every parameter are sampled, on each process its own.
    """

    def __init__(self) -> None:
        self._before: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # parameter, its sample, which have a gradient

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Remember a sample of each parameter, and which of its elements have a gradient."""
        self._before = [
            (parameter, _sample(parameter).clone(), _sample(parameter.grad) != 0)
            for parameter in pl_module.parameters()
            if parameter.grad is not None
        ]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - whatever a training step returns
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Compare after an update, and log."""
        if not self._before:
            return
        counts = []  # for each parameter, float32 [2]
        for parameter, before, has_gradient in self._before:
            unchanged = has_gradient & (_sample(parameter) == before)
            counts.append(torch.stack([unchanged.sum(), has_gradient.sum()]).float())
        self._before = []
        lost, expected = trainer.strategy.reduce(torch.stack(counts).sum(0), reduce_op="sum").tolist()
        pl_module.log("lost_updates", lost / max(expected, 1))


def _sample(values: Tensor) -> Tensor:
    """Evenly spaced elements of this process's part of a tensor."""
    local = (values.to_local() if isinstance(values, DTensor) else values).detach().flatten()
    return local[:: max(1, local.numel() // _SAMPLED)]
