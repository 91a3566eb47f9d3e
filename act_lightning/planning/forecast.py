"""Forecasts of memory and disk, in bytes, from numbers of parameters alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints import resolve_dtype, stored_dtype
from act_lightning.module import training_dtype
from act_lightning.planning.problem import Problem
from act_lightning.planning.run import Run

_SCORE_BYTES = 4


def memory_forecast(run: Run, parameters: int, target: Path) -> dict[str, int]:
    """Bytes of the models that are compared at a time; and of weights, gradients and two moments in training.

    Activations come on top; optimizers of 8 bits need less than is said here.
    """
    compared = resolve_dtype(run.model.weights_dtype, target)
    trained = training_dtype(str(run.trainer.get("precision") or "32-true"))
    models = 1 + _sources_together(run) if run.sources else 0
    return {
        "profiling": models * parameters * compared.itemsize,
        "training": parameters * 4 * trained.itemsize,
    }


def _sources_together(run: Run) -> int:
    """The most sources that are in memory beside the target: those that an ability links are profiled together."""
    groups: list[tuple[set[str], int]] = []
    for source in run.sources:
        linked = [group for group in groups if group[0] & set(source.abilities)]
        groups = [group for group in groups if group not in linked]
        names = set(source.abilities).union(*(group[0] for group in linked))
        groups.append((names, 1 + sum(group[1] for group in linked)))
    return max(size for _, size in groups)


def disk_forecast(run: Run, channels: ChannelInventory, target: Path) -> dict[str, int]:
    """Bytes of scores, of the exported model and of one checkpoint, and what is free."""
    stored = stored_dtype(target) if run.model.export_dtype == "auto" else resolve_dtype(run.model.export_dtype, target)
    trained = training_dtype(str(run.trainer.get("precision") or "32-true"))
    root = run.root.absolute()
    place = next(path for path in (root, *root.parents) if path.is_dir())
    return {
        "scores": sum(len(source.abilities) for source in run.sources) * channels.total * _SCORE_BYTES,
        "model": channels.parameters * stored.itemsize,
        "checkpoint": channels.parameters * 3 * trained.itemsize,
        "free": shutil.disk_usage(place).free,
    }


def space_problems(disk: dict[str, int]) -> list[Problem]:
    """A warning where what a run writes does not fit on the disk."""
    needed = disk["scores"] + disk["model"] + disk["checkpoint"]
    if needed <= disk["free"]:
        return []
    message = f"scores, model and a checkpoint take {needed / 1e9:.1f} GB, and {disk['free'] / 1e9:.1f} GB are free"
    return [Problem("warning", "trainer.default_root_dir", message, "Choose a folder on a larger disk.")]
