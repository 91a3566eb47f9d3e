"""Strategies under which a transfer can run."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from act_lightning.errors import Fault
from act_lightning.sharding import averaging_faults

_REMEDY = "Use one device, ddp, FSDPStrategy or ModelParallelStrategy; or `merge` first, and fine-tune its result."


def strategy_faults(trainer: L.Trainer) -> list[Fault]:
    """The fault of a strategy under which rows cannot be injected.

    DeepSpeed copies the weights that its optimizer works on before a callback may change them.
    """
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):
        return _mesh_faults(strategy) + averaging_faults(trainer)
    if isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, FSDPStrategy)):
        return averaging_faults(trainer)
    rule = "must be one of one device, DDP, FSDP1 and FSDP2 for a transfer"
    return [Fault("trainer.strategy", type(strategy).__name__, rule, _REMEDY)]


def is_sharded(trainer: L.Trainer) -> bool:
    """Whether no process holds the whole model while training."""
    return isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))


def _mesh_faults(strategy: ModelParallelStrategy) -> list[Fault]:
    """What is wrong with the sizes of FSDP2 on the mesh that is set up."""
    if strategy.device_mesh["tensor_parallel"].size() == 1:
        return []
    rule = "must be 1: rows are injected and trained in shards of data parallelism"
    remedy = "Set tensor_parallel_size: 1 and data_parallel_size: the number of processes; `auto` shards nothing."
    return [Fault("trainer.strategy.tensor_parallel_size", strategy._tensor_parallel_size, rule, remedy)]
