"""Optimizers and schedules by name or class path, checked before a model is loaded; and a check of gradients."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    import lightning as L


class WarmupCosine(LambdaLR):
    """A linear rise to the learning rate, then a fall along half a cosine, once over the whole run.

    Args:
        optimizer: Its learning rate is the peak.
        total_steps: Updates of the run; ``AbilityTransferModule`` fills it in.
        warmup: Share of the updates in which the rate rises.
        final: The last rate, as a share of the peak.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule, rates = WarmupCosine(sgd, total_steps=6, warmup=0.34, final=0.1), []
    >>> for _ in range(6):
    ...     rates.append(round(sgd.param_groups[0]["lr"], 3))
    ...     sgd.step()
    ...     schedule.step()
    >>> rates
    [0.5, 1.0, 1.0, 0.775, 0.325, 0.1]
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.03, final: float = 0.0) -> None:
        if total_steps < 1 or not 0 <= warmup < 1 or not 0 <= final <= 1:
            raise ValueError("total_steps must be positive, warmup in [0, 1), and final in [0, 1]")
        super().__init__(optimizer, partial(_warmup_cosine, total_steps, math.floor(warmup * total_steps), final))


def _warmup_cosine(total: int, rising: int, final: float, step: int) -> float:
    """The factor of the peak rate in the update after ``step`` others."""
    if step < rising:
        return (step + 1) / rising
    progress = min(1.0, (step - rising) / max(1, total - rising - 1))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


_NAMED: dict[str, type[Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_MOVED = {  # 2026-11-28
    "act_lightning.schedules.WarmupCosine": "act_lightning.training.optimizers.WarmupCosine"
}
NAMED_MOMENTS = 2
"""Tensors of state that an optimizer given by name keeps for a parameter, in its dtype."""
_FUSED_DEVICES = ("cpu", "cuda", "xpu")
_Class = TypeVar("_Class")


def make_optimizer(
    setting: str | Mapping[str, Any], parameters: Iterable[nn.Parameter], lr: float, fused: bool = False
) -> Optimizer:
    """The optimizer of that name, or of ``{class_path, init_args}``.

    Args:
        setting: ``adam``, ``adamw``, or the class path of any optimizer of torch or bitsandbytes with its arguments.
        parameters: The parameters to train.
        lr: Learning rate; an ``lr`` in ``init_args`` wins.
        fused: Whether an optimizer given by name updates all parameters in one kernel.

    Raises:
        ActError: If there is no such class, or it does not take the arguments.
    """
    if isinstance(setting, str):
        if setting not in _NAMED:
            problem = f"must be {' or '.join(_NAMED)}, or {{class_path, init_args}}"
            raise ActError(ConfigIssue("model.optimizer", setting, problem, "Choose one of these."))
        cls, arguments = _NAMED[setting], {"lr": lr} | ({"fused": True} if fused else {})
    else:
        cls, arguments = _class_and_arguments(setting, Optimizer, "model.optimizer")
        if "lr" in inspect.signature(cls).parameters:
            arguments = {"lr": lr, **arguments}
    return _make(cls, parameters, arguments, "model.optimizer")


def sharding_issues(setting: str | Mapping[str, Any]) -> list[ConfigIssue]:
    """The issue of an optimizer with quantized moments under a strategy that shards.

    The kernels of bitsandbytes do not know FSDP2's tensors. In both libraries the size of a shard decides whether its
    moments are quantized (https://github.com/pytorch/ao/issues/4912), so that another number of processes would train
    differently, and could not resume; torchao 0.18 fails in its first update under FSDP2 (2026-11-28).
    """
    module, _, leaf = ("" if isinstance(setting, str) else str(setting.get("class_path"))).rpartition(".")
    if module.startswith("bitsandbytes") or (module.startswith("torchao") and re.search("8bit|4bit|Fp8", leaf)):
        problem = "must keep its moments unquantized where parameters are sharded, whose size would decide on them"
        return [ConfigIssue("model.optimizer", setting, problem, "Write adam or adamw: FSDP shards the moments, too.")]
    return []


def may_fuse(trainer: L.Trainer) -> bool:
    """Whether Adam's kernel that updates all parameters together may be used.

    In mixed precision Lightning clips no gradients for an optimizer whose kernel may unscale them; and with 16-bit
    floats the summed gradients are divided after they are unscaled.
    """
    if trainer.strategy.root_device.type not in _FUSED_DEVICES or trainer.precision == "16-mixed":
        return False
    return not (trainer.gradient_clip_val and trainer.precision == "bf16-mixed")


def make_scheduler(setting: Mapping[str, Any], optimizer: Optimizer, updates: int | None = None) -> LRScheduler:
    """The schedule of ``{class_path, init_args}``, to be stepped once an update.

    Args:
        setting: The class path of a schedule, and its arguments.
        optimizer: Its learning rate is scheduled.
        updates: Of the run; the default of a ``total_steps`` that the class requires.

    Raises:
        ActError: If there is no such class, or it does not take the arguments.
    """
    cls, arguments = _class_and_arguments(setting, LRScheduler, "model.lr_scheduler")
    total = inspect.signature(cls).parameters.get("total_steps")
    if updates is not None and total is not None and total.default is inspect.Parameter.empty:
        arguments = {"total_steps": updates, **arguments}
    return _make(cls, optimizer, arguments, "model.lr_scheduler")


def optimizer_issues(
    optimizer: str | Mapping[str, Any], lr_scheduler: Mapping[str, Any] | None, lr: float
) -> list[ConfigIssue]:
    """What is wrong with the optimizer and schedule of a run, found by making them for a matrix of four zeros."""
    issues, matrix = [], nn.Parameter(torch.zeros(2, 2))
    if not 0 < lr < float("inf"):
        issues.append(ConfigIssue("model.learning_rate", lr, "must be a positive number", "The paper uses 2.0e-5."))
        lr = 1.0
    if isinstance(optimizer, str) and optimizer in _NAMED and lr_scheduler is None:
        return issues  # to make one would import torch's compiler
    made: Optimizer = torch.optim.SGD([matrix], lr)
    try:
        made = make_optimizer(optimizer, [matrix], lr)
    except ActError as error:
        issues += error.issues
    try:
        if lr_scheduler is not None:
            make_scheduler(lr_scheduler, made, updates=1)
    except ActError as error:
        issues += error.issues
    return issues


def _class_and_arguments(
    setting: Mapping[str, Any], base: type[_Class], name: str
) -> tuple[type[_Class], dict[str, Any]]:
    """The class that ``{class_path, init_args}`` names, which must derive from ``base``, and its arguments."""
    path, arguments = setting.get("class_path"), setting.get("init_args") or {}
    if not isinstance(path, str) or "." not in path or set(setting) - {"class_path", "init_args"}:
        problem = "must hold class_path (a dotted name) and, optionally, init_args"
        hint = "Write {class_path: torch.optim.AdamW, init_args: {…}}."
        raise ActError(ConfigIssue(name, dict(setting), problem, hint))
    module, _, leaf = _MOVED.get(path, path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), leaf)
    except (ImportError, AttributeError) as error:
        issue = ConfigIssue(f"{name}.class_path", path, f"must be importable ({error})", "Correct it.")
        raise ActError(issue) from error
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        problem, hint = f"must be a kind of {base.__name__}", "Name another class."
        raise ActError(ConfigIssue(f"{name}.class_path", path, problem, hint))
    if issubclass(cls, ReduceLROnPlateau):
        problem = "must be a schedule that depends on the number of updates alone"
        hint = "Try torch.optim.lr_scheduler.CosineAnnealingLR."
        raise ActError(ConfigIssue(f"{name}.class_path", path, problem, hint))
    if not isinstance(arguments, Mapping):
        raise ActError(ConfigIssue(f"{name}.init_args", arguments, "must be a mapping", "Write {name: value, …}."))
    return cls, dict(arguments)


def _make(cls: Callable[..., _Class], subject: object, arguments: dict[str, Any], name: str) -> _Class:
    """Make the optimizer or schedule; a class says which arguments it takes only by refusing others."""
    try:
        return cls(subject, **arguments)
    except Exception as error:  # whatever a third party's class may raise
        problem = f"must suit {getattr(cls, '__name__', cls)} ({error})"
        raise ActError(ConfigIssue(f"{name}.init_args", arguments, problem, "Correct them.")) from error


def are_finite(gradients: Sequence[Tensor]) -> Tensor:
    """Whether no element is NaN or infinite, bool scalar on their device; of sharded ones, in this process's part."""
    from torch.distributed.tensor import DTensor  # takes as long to import as torch

    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    parts = [part for part in local if part.numel()]
    if not parts:
        return torch.tensor(True)
    largest = torch._foreach_norm(parts, math.inf)
    return torch.stack([norm.float() for norm in largest]).isfinite().all()
