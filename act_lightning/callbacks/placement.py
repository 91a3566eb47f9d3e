"""Which part of a parameter this process holds: what a sharding strategy has to say for rows to be injected."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from act_lightning.errors import Fault


@dataclass(frozen=True)
class LocalRows:
    """Consecutive rows of a parameter, writable in place.

    Attributes:
        values: The rows held here; the whole parameter where nothing is sharded.
        first_row: Number of the first of them in the whole parameter.
    """

    values: Tensor
    first_row: int


def local_rows(parameter: nn.Parameter) -> LocalRows:
    """The rows of ``parameter`` that this process holds: all of them, on the strategies of today."""
    return LocalRows(parameter.data, 0)


def strategy_faults(trainer: L.Trainer) -> list[Fault]:
    """The fault of a strategy that shards parameters, which injection cannot write to yet."""
    if isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        return []
    rule = "must keep whole parameters on every process (one device or DDP) for a transfer"
    remedy = "Use trainer.strategy: auto or ddp; or run `merge` first and fine-tune its result with this strategy."
    return [Fault("trainer.strategy", type(trainer.strategy).__name__, rule, remedy)]
