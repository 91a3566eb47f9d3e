"""How a strategy deals a model to its processes: which share of weights, gradients and optimizer state each holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from act_lightning.planning.training import process_count


@dataclass(frozen=True)
class Shares:
    """What one process holds, as shares of the whole.

    Attributes:
        weights: Of the weights, between two steps.
        gradients: Of the gradients; 2 where buckets for exchange are held beside them.
        optimizer: Of the optimizer's state.
        offloaded: Whether the optimizer's state lies in the host's memory, not the device's.
    """

    weights: float = 1.0
    gradients: float = 1.0
    optimizer: float = 1.0
    offloaded: bool = False


def shares(trainer: Mapping[str, Any]) -> Shares:
    """What one process of a run holds in training.

    Args:
        trainer: Section ``trainer`` of the config.

    >>> shares({"strategy": "fsdp", "devices": 8}).weights, shares({"strategy": "ddp", "devices": 8}).gradients
    (0.125, 2.0)
    """
    processes, nodes = process_count(trainer) or 1, int(trainer.get("num_nodes") or 1)
    name, arguments = strategy_of(trainer)
    if "deepspeed" in name:
        return _deepspeed(name, arguments, processes)
    if "modelparallel" in name or "model_parallel" in name:
        return _model_parallel(arguments, processes, nodes)
    if "fsdp" in name:
        return _fsdp(name, arguments, processes, nodes)
    return Shares(gradients=2.0) if "ddp" in name and processes > 1 else Shares()


def strategy_of(trainer: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The name of a strategy in small letters, without its package, and its arguments.

    >>> strategy_of({"strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy", "init_args": {}}})
    ('fsdpstrategy', {})
    """
    strategy = trainer.get("strategy") or "auto"
    if isinstance(strategy, Mapping):
        return str(strategy.get("class_path")).rpartition(".")[2].lower(), strategy.get("init_args") or {}
    return str(strategy).lower(), {}


def _fsdp(name: str, arguments: Mapping[str, Any], processes: int, nodes: int) -> Shares:
    kind, part = str(arguments.get("sharding_strategy", "FULL_SHARD")), 1 / processes
    offloaded = "offload" in name or bool(arguments.get("cpu_offload"))
    if kind == "NO_SHARD":
        return Shares(offloaded=offloaded)
    if kind.startswith("HYBRID") or kind.startswith("_HYBRID"):
        part = nodes / processes
    weights = 1.0 if kind in ("SHARD_GRAD_OP", "_HYBRID_SHARD_ZERO2") else part
    return Shares(weights, part, part, offloaded)


def _model_parallel(arguments: Mapping[str, Any], processes: int, nodes: int) -> Shares:
    """FSDP2 shards over ``data_parallel_size``: by default the number of nodes, so that one node shards nothing."""
    size = arguments.get("data_parallel_size", "auto")
    part = 1 / (min(int(size), processes) if str(size).isdigit() else nodes)
    return Shares(part, part, part)


def _deepspeed(name: str, arguments: Mapping[str, Any], processes: int) -> Shares:
    stage = next((int(part) for part in name.split("_") if part.isdigit()), int(arguments.get("stage", 2)))
    weights, gradients, optimizer = (1 / processes if stage >= needed else 1.0 for needed in (3, 2, 1))
    return Shares(weights, gradients, optimizer, "offload" in name or bool(arguments.get("offload_optimizer")))
