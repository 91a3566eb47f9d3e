"""Checkpoints of a fit: complete or not there, readable by any number of processes; what a resumed fit may change."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.checkpoint.api import CheckpointException

from act_lightning.checkpoints.files import (
    atomic_file,
    remove,
    remove_leftovers,
    sync,
    temporary_path,
    wrap_os_errors,
)
from act_lightning.defaults import PREVIOUS
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.training.lightning_compat import load_sharded_checkpoint
from act_lightning.training.together import all_fail_together

_OPTIMIZER = "optimizer_"
_REST = "meta.pt"  # Lightning's file of all that is no tensor of model and optimizers; written last


class TrainingStateIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in the same folder, and renames it once the disk holds all of it.

    Lightning's own first makes the whole file in memory, and in the system's temporary folder, from which it is copied
    if that is another file system: a kill then leaves half of the new checkpoint, and the previous one is gone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write ``checkpoint`` to ``path``; an existing file is replaced once the new one is complete.

        Raises:
            ActError: The file system refuses: it is full, or read-only.
        """
        if storage_options is not None:
            raise TypeError("storage_options have no meaning for a checkpoint on a disk")
        path = Path(path)
        renamed_by_caller = path.match(".*.tmp-*")  # a name that temporary_path gave
        with wrap_os_errors(path), nullcontext(path) if renamed_by_caller else atomic_file(path) as temporary:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                try:
                    torch.save(checkpoint, file)
                except RuntimeError as error:  # which torch raises where the file raised OSError
                    cause = error.__cause__ or error.__context__
                    raise (cause if isinstance(cause, OSError) else error) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint at ``path``, a file or a folder of shards; tensors are loaded to the CPU.

        ``map_location`` is for a file only. With ``weights_only`` (``None`` means true), nothing but tensors and plain
        values may be in it.

        Raises:
            ActError: If it is cut short, no checkpoint, or holds other objects, whose loading could run code.
        """
        tensors_only = weights_only is None or weights_only
        try:
            if (Path(path) / _REST).is_file():  # a folder of shards, and complete
                return read_sharded_checkpoint(Path(path), tensors_only)
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=tensors_only)
            return checkpoint
        except pickle.UnpicklingError as error:
            problem = f"must hold nothing but tensors and plain values ({str(error).splitlines()[0]})"
            hint = "If you trust whoever wrote it with everything on this machine, add --weights_only false."
            raise ActError(ConfigIssue("ckpt_path", str(path), problem, hint)) from error
        except (RuntimeError, EOFError, OSError) as error:
            problem = f"must be a checkpoint of a fit that can be read ({str(error).splitlines()[0]})"
            hint = "Choose another, or start from the beginning without ckpt_path."
            raise ActError(ConfigIssue("ckpt_path", str(path), problem, hint)) from error


def read_sharded_checkpoint(folder: Path, weights_only: bool = True) -> dict[str, Any]:
    """A folder of shards as the checkpoint that one process without shards would have written.

    With ``weights_only``, its file without tensors may hold nothing but plain values. The index of the shards is
    torch's own pickle in any case: resume only from folders that you trust.
    """
    rest = torch.load(folder / _REST, map_location="cpu", weights_only=weights_only)
    stored = load_sharded_checkpoint(folder)
    optimizers = []
    for number in range(sum(key.startswith(_OPTIMIZER) for key in stored)):
        # torch's optimizers number their parameters, where shards name them
        state = stored[f"{_OPTIMIZER}{number}"]
        names = [name for group in state["param_groups"] for name in group["params"]]
        index = {name: position for position, name in enumerate(names)}
        groups = [{**group, "params": [index[name] for name in group["params"]]} for group in state["param_groups"]]
        values = {index[name]: of_parameter for name, of_parameter in state["state"].items()}
        optimizers.append({"state": values, "param_groups": groups})
    weights = stored["state_dict"] if "state_dict" in stored else stored["model"]  # FSDP1's name for it
    return {**rest, "state_dict": weights, "optimizer_states": optimizers}


def save_whole(trainer: L.Trainer, path: Path) -> None:
    """Write the state of a fit to ``path``, where the previous checkpoint stays until the new one is complete.

    Call it on every process, after an update. ``path`` is a file ``*.ckpt``, or the folder that a strategy makes of it.

    Raises:
        ActError: On every process, if it could not be written; the previous checkpoint is still there then.
    """
    with all_fail_together(trainer.strategy):
        temporary: Path = trainer.strategy.broadcast(temporary_path(path))
        if trainer.is_global_zero:
            remove_leftovers(path.parent, path.name)
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
        except (ActError, OSError, RuntimeError, CheckpointException) as error:
            if trainer.is_global_zero:
                remove(temporary)
            problem = f"must be written, but could not be ({str(error.__cause__ or error).splitlines()[0]})"
            hint = "free some space, permit writing there, or choose another folder; then resume with ckpt_path: last."
            previous = f"{path} is the one before; " if path.exists() else ""
            raise ActError(ConfigIssue("checkpoint", str(path), problem, previous + hint)) from error
        if trainer.is_global_zero:
            _replace(temporary, path)
        trainer.strategy.barrier("checkpoint in place")


def _replace(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``: in one step if both are files, else by way of a second name for the previous one.

    Whenever a kill comes, a complete checkpoint has a name that resuming looks for; what is deleted is renamed first,
    because an incomplete one must not have such a name.
    """
    previous = path.with_name(PREVIOUS)

    def discard_previous() -> None:
        if previous.exists():
            doomed = temporary_path(previous)
            os.replace(previous, doomed)
            remove(doomed)

    sync(new)
    if path.is_dir() or (path.exists() and new.is_dir()):
        discard_previous()
        os.replace(path, previous)
    os.replace(new, path)
    sync(path.parent)
    discard_previous()


def resumed_settings_issues(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[ConfigIssue]:
    """Settings that differ from those of a checkpoint and would be ignored, because the optimizer is restored.

    Warns of other settings that differ.
    """
    issues = []
    for name in (name for name in now if name in before and before[name] != now[name]):
        if name in ("learning_rate", "optimizer", "lr_scheduler"):
            problem = f"must be {before[name]!r} as before the checkpoint, whose optimizer is restored"
            hint = "Write that; or start a new fit, with model.target: the exported model."
            issues.append(ConfigIssue(f"model.{name}", now[name], problem, hint))
        else:
            old, new = (
                ", ".join(f"{key} {str(item)[:8]}" for key, item in value.items()) if isinstance(value, dict) else value
                for value in (before[name], now[name])
            )
            rank_zero_warn(f"this fit resumes with other {name} than before: {old}, now {new}")
    return issues
