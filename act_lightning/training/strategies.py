"""Strategies under which a transfer can run, and averages of weights beside it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from act_lightning.errors import ConfigIssue
from act_lightning.training.lightning_compat import averaged_model

_REMEDY = "Use one device, ddp, FSDPStrategy or ModelParallelStrategy; or `merge` first, and fine-tune its result."


def strategy_issues(trainer: L.Trainer) -> list[ConfigIssue]:
    """The issue of a strategy under which rows cannot be injected.

    DeepSpeed copies the weights that its optimizer works on before a callback may change them.
    """
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):
        return _mesh_issues(strategy) + averaging_issues(trainer)
    if isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, FSDPStrategy)):
        return averaging_issues(trainer)
    problem = "must be one of one device, DDP, FSDP1 and FSDP2 for a transfer"
    return [ConfigIssue("trainer.strategy", type(strategy).__name__, problem, _REMEDY)]


def is_sharded(trainer: L.Trainer) -> bool:
    """Whether no process holds the whole model while training."""
    return isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))


def _mesh_issues(strategy: ModelParallelStrategy) -> list[ConfigIssue]:
    """What is wrong with the sizes of FSDP2 on the mesh that is set up."""
    size = strategy.device_mesh["tensor_parallel"].size()
    if size == 1:
        return []
    problem = "must be 1: rows are injected and trained in shards of data parallelism"
    hint = "Set tensor_parallel_size: 1 and data_parallel_size: the number of processes; `auto` shards nothing."
    return [ConfigIssue("trainer.strategy.tensor_parallel_size", size, problem, hint)]


def averaging_issues(trainer: L.Trainer) -> list[ConfigIssue]:
    """The issue of a ``WeightAveraging`` under a strategy that shards: its setup builds and copies the whole model."""
    if not isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
        return []
    problem = "must not stand beside a strategy that shards: it builds and copies the whole model on every process"
    hint = "Average on one device or under ddp, or leave it out."
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    names = [type(callback).__name__ for callback in callbacks if isinstance(callback, WeightAveraging)]
    return [ConfigIssue("trainer.callbacks", name, problem, hint) for name in names]


def averages(trainer: L.Trainer) -> Iterator[nn.Module]:
    """The averaged copies of the model that callbacks of this trainer hold."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and (average := averaged_model(callback)) is not None:
            yield average


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
