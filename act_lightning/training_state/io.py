"""How a checkpoint that is one file is written and read, and how one process reads a folder of shards."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from act_lightning.checkpoints.atomic import is_beside, replacing_file, storing
from act_lightning.errors import ActError, Fault
from act_lightning.training_state.shards import is_sharded_checkpoint, read_whole


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
        with storing(place), nullcontext(place) if is_beside(place) else replacing_file(place) as written:
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
        rule = f"must hold nothing but tensors and plain values ({str(error).splitlines()[0]})"
        remedy = "If you trust whoever wrote it with everything on this machine, add --weights_only false."
        raise ActError(Fault("ckpt_path", str(path), rule, remedy)) from error
    except (RuntimeError, EOFError, OSError) as error:
        rule = f"must be a checkpoint of a fit that can be read ({str(error).splitlines()[0]})"
        remedy = "Take another, or start from the beginning without ckpt_path."
        raise ActError(Fault("ckpt_path", str(path), rule, remedy)) from error
