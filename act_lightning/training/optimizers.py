"""Optimizers and schedules by name or class path, checked before a model is loaded."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import lightning as L
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from act_lightning.errors import ActError, ConfigIssue, raise_if_any


class WarmupCosine(LambdaLR):
    """From near zero up to the learning rate along a line, then down along half a cosine, once over the whole run.

    Args:
        optimizer: Its learning rate is the highest.
        total_steps: Updates of the run; a run's module fills it in.
        warmup: Share of the updates in which the rate rises.
        final: What the rate falls to, as a share of the highest.

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
        super().__init__(optimizer, partial(_factor, total_steps, math.floor(warmup * total_steps), final))


def _factor(total: int, rising: int, final: float, step: int) -> float:
    """What the highest rate is multiplied by in the update after ``step`` others."""
    if step < rising:
        return (step + 1) / rising
    done = min(1.0, (step - rising) / max(1, total - rising - 1))
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2


_NAMED: dict[str, type[Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_MOVED = {
    "act_lightning.schedules.WarmupCosine": "act_lightning.training.optimizers.WarmupCosine"
}  # renamed 2026-11-28
_FUSED_DEVICES = ("cpu", "cuda", "xpu")
_KEYS = {"class_path", "init_args"}
_Base = TypeVar("_Base")
_Made = TypeVar("_Made")


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
        ActError: If there is no such class, it does not take the arguments, or it cannot work on sharded parameters.
    """
    cls, arguments = _optimizer_call(setting, lr)
    listed = list(parameters)
    if any(isinstance(one, DTensor) for one in listed) and cls.__module__.startswith("bitsandbytes"):
        raise_if_any([sharding_issue(setting)])
    if isinstance(setting, str) and fused:
        arguments["fused"] = True
    return _call(cls, listed, arguments, "model.optimizer")


def sharding_issue(setting: object) -> ConfigIssue:
    """What is wrong with an optimizer of bitsandbytes under FSDP2: its kernels know no sharded tensors."""
    problem = "must work on sharded parameters under FSDP2, and the kernels of bitsandbytes do not"
    hint = "Write {class_path: torchao.optim.AdamW8bit, init_args: {weight_decay: 0.0}}, or adam."
    return ConfigIssue("model.optimizer", setting, problem, hint)


def may_fuse(trainer: L.Trainer) -> bool:
    """Whether Adam's kernel that updates all parameters together may be used.

    In mixed precision Lightning lets no optimizer clip whose kernel may undo the scale of a loss; and with 16-bit
    floats the division of a window's gradient has to come after that is undone.
    """
    if trainer.strategy.root_device.type not in _FUSED_DEVICES or trainer.precision == "16-mixed":
        return False
    return not (trainer.gradient_clip_val and trainer.precision == "bf16-mixed")


def make_scheduler(setting: Mapping[str, Any], optimizer: Optimizer, updates: int | None = None) -> LRScheduler:
    """The schedule of ``{class_path, init_args}``, to be stepped once an update.

    Args:
        setting: The class path of a schedule, and its arguments.
        optimizer: The optimizer.
        updates: Of the run; given as ``total_steps`` to a class that cannot do without and was not told.

    Raises:
        ActError: If there is no such class, or it does not take the arguments.
    """
    cls = _import(setting, LRScheduler, "model.lr_scheduler")
    arguments = _arguments(setting, "model.lr_scheduler")
    total = inspect.signature(cls).parameters.get("total_steps")
    if updates is not None and total is not None and total.default is inspect.Parameter.empty:
        arguments = {"total_steps": updates, **arguments}
    return _call(cls, optimizer, arguments, "model.lr_scheduler")


def optimizer_issues(
    optimizer: str | Mapping[str, Any], lr_scheduler: Mapping[str, Any] | None, lr: float
) -> list[ConfigIssue]:
    """What is wrong with the optimizer and schedule of a run, found by making them for a matrix of four zeros."""
    found = []
    if not 0 < lr < float("inf"):
        found.append(ConfigIssue("model.learning_rate", lr, "must be a positive number", "The paper uses 2.0e-5."))
        lr = 1.0
    trial: Optimizer = torch.optim.SGD([_trial_matrix()], lr)
    try:
        trial = make_optimizer(optimizer, [_trial_matrix()], lr)
    except ActError as error:
        found += error.issues
    try:
        if lr_scheduler is not None:
            make_scheduler(lr_scheduler, trial, updates=1)
    except ActError as error:
        found += error.issues
    return found


def _trial_matrix() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2, 2))


def _optimizer_call(setting: str | Mapping[str, Any], lr: float) -> tuple[type[Optimizer], dict[str, Any]]:
    if isinstance(setting, str):
        if setting not in _NAMED:
            problem = f"must be {' or '.join(_NAMED)}, or {{class_path, init_args}}"
            raise ActError(ConfigIssue("model.optimizer", setting, problem, "Choose one of these."))
        return _NAMED[setting], {"lr": lr}
    cls = _import(setting, Optimizer, "model.optimizer")
    arguments = _arguments(setting, "model.optimizer")
    if "lr" in inspect.signature(cls).parameters:
        arguments = {"lr": lr, **arguments}
    return cls, arguments


def _import(setting: Mapping[str, Any], base: type[_Base], name: str) -> type[_Base]:
    """The class that ``setting`` names, which must derive from ``base``."""
    path = setting.get("class_path")
    if not isinstance(path, str) or "." not in path or set(setting) - _KEYS:
        problem = "must hold class_path (a dotted name) and, if wanted, init_args"
        raise ActError(
            ConfigIssue(name, dict(setting), problem, "Write {class_path: torch.optim.AdamW, init_args: {…}}.")
        )
    module, _, leaf = _MOVED.get(path, path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), leaf)
    except (ImportError, AttributeError) as error:
        raise ActError(
            ConfigIssue(f"{name}.class_path", path, f"must be importable ({error})", "Correct it.")
        ) from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ActError(
            ConfigIssue(f"{name}.class_path", path, f"must be a kind of {base.__name__}", "Name another class.")
        )
    if issubclass(found, ReduceLROnPlateau):
        problem = "must be a schedule of the number of updates alone"
        raise ActError(
            ConfigIssue(f"{name}.class_path", path, problem, "Try torch.optim.lr_scheduler.CosineAnnealingLR.")
        )
    return found


def _arguments(setting: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The ``init_args`` of ``setting``."""
    arguments = setting.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise ActError(ConfigIssue(f"{name}.init_args", arguments, "must be a mapping", "Write {name: value, …}."))
    return dict(arguments)


def _call(cls: Callable[..., _Made], subject: object, arguments: dict[str, Any], name: str) -> _Made:
    """Make the optimizer or schedule, whose class says what it takes only by refusing the rest."""
    try:
        return cls(subject, **arguments)
    except Exception as error:  # whatever a class of someone else's may raise
        problem = f"must suit {getattr(cls, '__name__', cls)} ({error})"
        raise ActError(ConfigIssue(f"{name}.init_args", arguments, problem, "Correct them.")) from error
