"""Forecasts of memory and disk, in bytes, from numbers of parameters alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints import resolve_dtype, stored_dtype
from act_lightning.module import training_dtype
from act_lightning.planning.run import Run

_SCORE_BYTES = 4


def memory_forecast(run: Run, parameters: int, target: Path) -> dict[str, int]:
    """Bytes of the pair in profiling, and of weights, gradients and two moments an element in training.

    Activations come on top; optimizers of 8 bits need less than is said here.
    """
    compared = resolve_dtype(run.model.weights_dtype, target)
    trained = training_dtype(str(run.trainer.get("precision") or "32-true"))
    models = 1 + len(run.sources) if run.sources else 0
    return {
        "profiling": min(models, 2) * parameters * compared.itemsize,
        "training": parameters * 4 * trained.itemsize,
    }


def disk_forecast(run: Run, channels: ChannelInventory, target: Path) -> dict[str, int]:
    """Bytes of scores, of the exported model and of one checkpoint, and what is free."""
    stored = stored_dtype(target) if run.model.export_dtype == "auto" else resolve_dtype(run.model.export_dtype, target)
    trained = training_dtype(str(run.trainer.get("precision") or "32-true"))
    root = Path(run.root).absolute()
    place = next(path for path in (root, *root.parents) if path.is_dir())
    return {
        "scores": sum(len(source.abilities) for source in run.sources) * channels.total * _SCORE_BYTES,
        "model": channels.parameters * stored.itemsize,
        "checkpoint": channels.parameters * 3 * trained.itemsize,
        "free": shutil.disk_usage(place).free,
    }
