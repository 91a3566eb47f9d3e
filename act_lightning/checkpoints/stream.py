"""A merge from disk to disk: each tensor is read, changed where concerned, and written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from act_lightning.checkpoints.export import export_model
from act_lightning.checkpoints.reader import CheckpointReader


def merge_checkpoint(
    out: Path,
    target: Path,
    change: Callable[[str, Tensor], Tensor],
    names_changed: Collection[str],
    dtype: torch.dtype | None,
    extra_files: Mapping[str, str | bytes],
) -> None:
    """Export ``target`` with some parameters changed; a tied matrix that is stored once is changed once.

    Args:
        out: The folder to be, as in :func:`~act_lightning.checkpoints.export.export_model`.
        target: The folder of the model to be changed.
        change: Takes the name under which a parameter is stored and its values, gives the new values.
        names_changed: The parameters concerned, tied ones under any of their names; all others keep every bit.
        dtype: The dtype on disk; by default each parameter has the target's.
        extra_files: Further files by name.

    Raises:
        ActError: As ``export_model``; NaN or infinity in the target.
    """
    with CheckpointReader(target) as reader:
        concerned = {reader.key(name) for name in names_changed}

        def get(name: str) -> Tensor:
            values = reader.read(name)
            return change(name, values) if reader.key(name) in concerned else values

        export_model(out, target, get, dtype, extra_files)
