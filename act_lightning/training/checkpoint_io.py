"""Checkpoints of a fit, whole or not there: written beside their place and renamed, read by any number of processes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

from act_lightning.checkpoints.files import (
    atomic_file,
    is_temporary_path,
    remove,
    remove_leftovers,
    sync,
    temporary_path,
    wrap_os_errors,
)
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.training.lightning_compat import load_sharded_checkpoint

_OPTIMIZER = "optimizer_"
_REST = "meta.pt"  # Lightning's name for what is no tensor of model and optimizers; written last


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether ``path`` is such a folder, and complete."""
    return (path / _REST).is_file()


def read_whole(folder: Path, weights_only: bool = True) -> dict[str, Any]:
    """A folder of shards as the one checkpoint that a process without shards would have written.

    Args:
        folder: The folder.
        weights_only: Whether nothing but tensors and plain values may be in its part that is no tensor. The index of
            the shards is torch's own pickle in any case: resume from folders of your own only.

    Returns:
        All of it; of every parameter the whole.
    """
    rest = torch.load(folder / _REST, map_location="cpu", weights_only=weights_only)
    stored = load_sharded_checkpoint(folder)
    count = sum(key.startswith(_OPTIMIZER) for key in stored)
    optimizers = [_by_number(stored[f"{_OPTIMIZER}{number}"]) for number in range(count)]
    weights = stored["state_dict"] if "state_dict" in stored else stored["model"]  # FSDP1's name for it
    return {**rest, "state_dict": weights, "optimizer_states": optimizers}


def _by_number(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by the numbers of its parameters, which torch's optimizers want, instead of their names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: values for name, values in state["state"].items()}, "param_groups": groups}


class TrainingStateIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and renames it when the disk holds all of it.

    Lightning's own makes the whole file in memory first, and in the system's temporary folder, from where it is copied
    into place when that is another file system: a kill then leaves half of it, and the one before is gone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write ``checkpoint`` to ``path``; whatever stood there stands until it is complete.

        Raises:
            ActError: The file system refuses: it is full, or read-only.
        """
        if storage_options is not None:
            raise TypeError("storage_options have no meaning for a checkpoint on a disk")
        place = Path(path)
        with wrap_os_errors(place), nullcontext(place) if is_temporary_path(place) else atomic_file(place) as written:
            written.parent.mkdir(parents=True, exist_ok=True)
            with written.open("wb") as file:
                _write(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint at ``path``, a file or a folder of shards; tensors come to the CPU.

        Args:
            path: The checkpoint.
            map_location: Where tensors go, instead of the CPU; for a file only.
            weights_only: Whether nothing but tensors and plain values may be in it; ``None`` means that it is so.

        Raises:
            ActError: If it is cut short, no checkpoint, or holds objects that only a program could make.
        """
        only = weights_only is None or weights_only
        with _reading(Path(path)):
            if is_sharded_checkpoint(Path(path)):
                return read_whole(Path(path), only)
            where = map_location or "cpu"
            found: dict[str, Any] = torch.load(path, map_location=where, weights_only=only)
            return found


def _write(checkpoint: dict[str, Any], file: Any) -> None:  # noqa: ANN401 - a file
    """``torch.save``, which says RuntimeError where its file said OSError."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        cause = error.__cause__ or error.__context__
        raise (cause if isinstance(cause, OSError) else error) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError as error:
        problem = f"must hold nothing but tensors and plain values ({str(error).splitlines()[0]})"
        hint = "If you trust whoever wrote it with everything on this machine, add --weights_only false."
        raise ActError(ConfigIssue("ckpt_path", str(path), problem, hint)) from error
    except (RuntimeError, EOFError, OSError) as error:
        problem = f"must be a checkpoint of a fit that can be read ({str(error).splitlines()[0]})"
        hint = "Take another, or start from the beginning without ckpt_path."
        raise ActError(ConfigIssue("ckpt_path", str(path), problem, hint)) from error


LAST = "last.ckpt"
_BEFORE = "last-before.ckpt"  # found by Lightning, as by us, where a kill has left nothing else


def save_whole(trainer: L.Trainer, place: Path) -> None:
    """Write the state of a fit to ``place``, which holds the checkpoint before it until the new one is complete.

    To be called on every process, after an update.

    Args:
        trainer: The Trainer that fits.
        place: A file ``*.ckpt``, or the folder that a strategy makes of it.

    Raises:
        ActError: On every process, if it could not be written; what was there is there then.
    """
    new: Path = trainer.strategy.broadcast(temporary_path(place))
    if trainer.is_global_zero:
        remove_leftovers(place.parent, place.name)
    failure = trainer.strategy.broadcast(_written(trainer, new))
    if failure is not None:
        if trainer.is_global_zero:
            remove(new)
        raise ActError(
            ConfigIssue(
                "checkpoint", str(place), f"must be written whole, but could not be ({failure})", _remedy(place)
            )
        )
    if trainer.is_global_zero:
        _put(new, place)
    trainer.strategy.barrier("checkpoint in place")


def _written(trainer: L.Trainer, path: Path) -> str | None:
    """What went wrong in writing, on the first process, if anything did."""
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except (ActError, OSError, RuntimeError, CheckpointException) as error:
        trainer.strategy.barrier("Trainer.save_checkpoint")  # where the others wait, or each comes from its own error
        return str(error.__cause__ or error).splitlines()[0]
    return None


def _remedy(place: Path) -> str:
    kept = f"{place} is the one before; " if place.exists() else ""
    return f"{kept}free some space, permit writing there, or choose another folder; then go on with ckpt_path: last."


def _put(new: Path, place: Path) -> None:
    """Rename ``new`` to ``place``: in one step where both are files, else with the one before under a name of its own.

    Whenever a kill comes, a complete checkpoint has a name that resuming looks for. What is to be deleted is renamed
    first, for no half of it may have one.
    """
    before = place.with_name(_BEFORE)
    sync(new)
    if place.is_dir() or (place.exists() and new.is_dir()):
        _discard(before)
        os.replace(place, before)
    os.replace(new, place)
    sync(place.parent)
    _discard(before)


def _discard(path: Path) -> None:
    if path.exists():
        doomed = temporary_path(path)
        os.replace(path, doomed)
        remove(doomed)
