"""What a Trainer is given where the config is silent: loggers, checkpoints, an orderly end, an export."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from act_lightning.callbacks.last_checkpoint import LastCheckpoint
from act_lightning.callbacks.preemption import PreemptionCheckpoint
from act_lightning.errors import ConfigIssue
from act_lightning.training.checkpoint_io import TrainingStateIO
from act_lightning.training.lightning_compat import has_own_checkpoint_io

_WANDB = "wandb"


def trainer_defaults(settings: Namespace, root: Path, verb: str) -> dict[str, Any]:
    """Settings of the Trainer for which the config leaves room.

    Args:
        settings: Section ``trainer``, with its objects made.
        root: Where the run writes.
        verb: What is to be done.
    """
    found: dict[str, Any] = {}
    if settings.logger is None:
        found["logger"] = _loggers(root)
    if settings.log_every_n_steps is None:
        found["log_every_n_steps"] = 1  # updates are few
    if settings.max_epochs is None and settings.max_steps == -1 and settings.max_time is None:
        found["max_epochs"] = 1  # as in the paper; Lightning would go on for a thousand
    plugins = _listed(settings.plugins)
    if not has_own_checkpoint_io(settings.strategy) and not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        found["plugins"] = [*plugins, TrainingStateIO()]
    callbacks = _listed(settings.callbacks)
    if _keeps(settings, verb) and not any(isinstance(callback, PreemptionCheckpoint) for callback in callbacks):
        found["callbacks"] = [PreemptionCheckpoint(), *callbacks]  # before profiling begins
    return found


def logger_issues(settings: Mapping[str, Any]) -> list[ConfigIssue]:
    """Loggers whose package is not installed.

    Args:
        settings: Section ``trainer``, before its objects are made.
    """
    paths = [str(one["class_path"]) for one in _listed(settings.get("logger")) if isinstance(one, Mapping)]
    problem, hint = "must find the package wandb, which is not installed", "Run: pip install wandb"
    missing = [path for path in paths if path.rpartition(".")[2] == "WandbLogger" and find_spec(_WANDB) is None]
    return [ConfigIssue("trainer.logger", path, problem, hint) for path in missing]


def default_callbacks(settings: Namespace, verb: str, export: Callback) -> list[Callback]:
    """Callbacks that come after those of the config, as far as it has none of their kind.

    Args:
        settings: Section ``trainer``, with its objects made.
        verb: What is to be done.
        export: Writes the result of a fit.
    """
    configured, found = _listed(settings.callbacks), []
    if verb == "fit" and not settings.fast_dev_run and not any(type(one) is type(export) for one in configured):
        found.append(export)
    if settings.enable_checkpointing is not False and not any(map(_keeps_last, configured)):
        found.append(LastCheckpoint())
    return found


def _keeps(settings: Namespace, verb: str) -> bool:
    return verb == "fit" and settings.enable_checkpointing is not False and not settings.fast_dev_run


def _keeps_last(callback: Callback) -> bool:
    """Whether a callback keeps the last checkpoint where the next run finds it."""
    ours = isinstance(callback, LastCheckpoint)
    return ours or (isinstance(callback, ModelCheckpoint) and bool(callback.save_last and callback.dirpath))


def _listed(value: Any) -> list[Any]:  # noqa: ANN401 - a list, one of its items, or nothing
    return list(value) if isinstance(value, list) else [value] if value else []


def _loggers(root: Path) -> list[Logger]:
    """CSV and TensorBoard, in one folder: ``logs/version_0`` and so on."""
    table = CSVLogger(str(root), name="logs")
    return [table, TensorBoardLogger(str(root), name="logs", version=table.version)]
