"""What fine-tuning will do: processes, shares of a strategy, updates, and whether precision keeps small steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from act_lightning.planning.problem import Level, Problem
from act_lightning.planning.run import Run


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


PAPER_UPDATE = 16
_SIZES = ("data_parallel_size", "tensor_parallel_size")


def training_problems(run: Run) -> list[Problem]:
    """Warnings on updates of other than 16 samples, precisions that lose small updates, strategies that do not fit."""
    problems = [*_source_problems(run), *_update_problems(run), *_precision_problems(run), *_strategy_problems(run)]
    return problems + _validation_problems(run)


def _source_problems(run: Run) -> list[Problem]:
    if run.profiler.sources is not None:
        return []
    message = "no source is named, so nothing is transferred: `fit` is plain fine-tuning of the target"
    return [Problem("note", "profile.sources", message, "Name sources for a transfer.")]


def _update_problems(run: Run) -> list[Problem]:
    processes, accumulated = process_count(run.trainer), run.trainer.get("accumulate_grad_batches") or 1
    samples = run.data.batch_size * accumulated * (processes or 1)
    factors = f"data.batch_size {run.data.batch_size} × trainer.accumulate_grad_batches {accumulated}"
    setting, remedy = "trainer.accumulate_grad_batches", "Change one of them, unless another size is what you want."
    if processes is None:
        message = f"an update covers {samples} samples ({factors}) times the number of processes, chosen at start"
        level: Level = "note" if samples == PAPER_UPDATE else "warning"
        message += f"; the paper's cover {PAPER_UPDATE}"
        return [Problem(level, "trainer.devices", message, "Name a number of trainer.devices.")]
    if samples == PAPER_UPDATE:
        return []
    message = f"an update covers {samples} samples ({factors} × {processes} processes); the paper's cover"
    return [Problem("warning", setting, f"{message} {PAPER_UPDATE}", remedy)]


def _precision_problems(run: Run) -> list[Problem]:
    precision = str(run.trainer.get("precision"))
    if precision not in ("bf16-true", "16-true") or _rounds_at_random(run.model.optimizer):
        return []
    message = f"weights in {precision} lose most updates to rounding at a learning rate such as 2e-5"
    remedy = "Use bf16-mixed, which keeps float32 weights, or the optimizer of configs/strategy/single_gpu_bf16.yaml."
    return [Problem("warning", "trainer.precision", message, remedy)]


def _rounds_at_random(optimizer: str | Mapping[str, Any]) -> bool:
    """Whether an optimizer of torchao keeps small updates of bfloat16 weights in the mean."""
    arguments = {} if isinstance(optimizer, str) else optimizer.get("init_args") or {}
    return bool(arguments.get("bf16_stochastic_round"))


def _validation_problems(run: Run) -> list[Problem]:
    named = run.data.validation if isinstance(run.data.validation, list) else []
    both = [name for name in named if name in run.data.train]
    if not both:
        return []
    message = f"{', '.join(both)}: validated on, and trained on as well, so that the loss says little of new rows"
    return [Problem("note", "data.validation", message, "Name data.train without them, or write a share to hold out.")]


def _strategy_problems(run: Run) -> list[Problem]:
    strategy = run.trainer.get("strategy")
    name, sizes = str(strategy), dict[str, Any]()
    if isinstance(strategy, Mapping):
        name, sizes = str(strategy.get("class_path")).rpartition(".")[2], strategy.get("init_args") or {}
    setting = "trainer.strategy"
    if "modelparallel" in name.lower() and "auto" in (sizes.get(key, "auto") for key in _SIZES):
        message = f"{name} with automatic sizes shards nothing over the devices of one node"
        remedy = "Set data_parallel_size to the number of processes and tensor_parallel_size to 1."
        return [Problem("warning", setting, message, remedy)]
    return []


def process_count(trainer: Mapping[str, Any]) -> int | None:
    """How many processes a config asks for, or ``None`` where Lightning counts the devices at start.

    >>> process_count({"devices": 8, "num_nodes": 2}), process_count({"devices": "0,1"}), process_count({})
    (16, 2, None)
    """
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes") or 1
    if isinstance(devices, str) and devices != "auto":
        listed = [part for part in devices.split(",") if part.strip()]
        devices = len(listed) if "," in devices else int(devices) if devices.isdigit() else "auto"
    if isinstance(devices, list):
        devices = len(devices)
    if isinstance(devices, int) and devices > 0:
        return int(devices * nodes)
    return int(nodes) if trainer.get("accelerator") == "cpu" else None
