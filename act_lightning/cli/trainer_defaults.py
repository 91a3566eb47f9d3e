"""What a Trainer gets where the config says nothing: loggers, checkpoints, a clean end, an export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from act_lightning.callbacks.last_checkpoint import LastCheckpoint
from act_lightning.callbacks.preemption import PreemptionCheckpoint
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.training.checkpoint_io import TrainingStateIO
from act_lightning.training.lightning_compat import has_own_checkpoint_io

_LOG_FOLDERS, _TENSORBOARD_FILES = "logs/version_*", "events.out.tfevents.*"


def trainer_defaults(settings: Namespace, root: Path, verb: str) -> dict[str, Any]:
    """Arguments of the Trainer that section ``trainer``, with its objects instantiated, leaves open."""
    defaults: dict[str, Any] = {}
    if settings.logger is None:  # both in one folder: logs/version_0 and so on
        table = CSVLogger(str(root), name="logs")
        defaults["logger"] = [table, TensorBoardLogger(str(root), name="logs", version=table.version)]
    if settings.log_every_n_steps is None:
        defaults["log_every_n_steps"] = 1  # updates are few
    if settings.max_epochs is None and settings.max_steps == -1 and settings.max_time is None:
        defaults["max_epochs"] = 1  # as in the paper; Lightning's default is 1000
    plugins, callbacks = _as_list(settings.plugins), _as_list(settings.callbacks)
    if not has_own_checkpoint_io(settings.strategy) and not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        defaults["plugins"] = [*plugins, TrainingStateIO()]
    checkpoints = verb == "fit" and settings.enable_checkpointing is not False and not settings.fast_dev_run
    if checkpoints and not any(isinstance(callback, PreemptionCheckpoint) for callback in callbacks):
        defaults["callbacks"] = [PreemptionCheckpoint(), *callbacks]  # before profiling begins
    return defaults


def default_callbacks(settings: Namespace, verb: str, export: Callback) -> list[Callback]:
    """Callbacks that follow those of the config, unless it has one of their kind; ``export`` is for ``fit`` only."""
    configured, defaults = _as_list(settings.callbacks), []
    if verb == "fit" and not settings.fast_dev_run and not any(type(item) is type(export) for item in configured):
        defaults.append(export)
    keeps_last = any(
        isinstance(item, LastCheckpoint) or (isinstance(item, ModelCheckpoint) and item.save_last and item.dirpath)
        for item in configured
    )
    if settings.enable_checkpointing is not False and not keeps_last:
        defaults.append(LastCheckpoint())
    return defaults


def logger_issues(settings: Mapping[str, Any]) -> list[ConfigIssue]:
    """Find loggers whose package is not installed, in section ``trainer`` before its objects are instantiated."""
    loggers = [logger for logger in _as_list(settings.get("logger")) if isinstance(logger, Mapping)]
    return [
        ConfigIssue("trainer.logger", path, "needs the package wandb, which is not installed", "Run: pip install wandb")
        for path in (str(logger["class_path"]) for logger in loggers)
        if path.rpartition(".")[2] == "WandbLogger" and find_spec("wandb") is None
    ]


def _as_list(value: Any) -> list[Any]:  # noqa: ANN401 - a list, one of its items, or None
    return list(value) if isinstance(value, list) else [value] if value else []


@contextmanager
def remove_empty_run(root: Path) -> Iterator[None]:
    """Remove the empty log folders that Lightning made for a run, if it is refused with an :class:`ActError`."""
    root_existed, earlier = root.is_dir(), set(root.glob(_LOG_FOLDERS))
    try:
        yield
    except ActError:
        folders = set(root.glob(_LOG_FOLDERS))
        for folder in folders - earlier:
            files = list(folder.iterdir())
            if all(file.match(_TENSORBOARD_FILES) for file in files):  # nothing was logged: CSV begins with a value
                for file in files:
                    file.unlink(missing_ok=True)
        for folder in (*folders, root / "logs", *([] if root_existed else [root])):
            with suppress(OSError):  # it is not empty, or another process removed it
                folder.rmdir()
        raise
