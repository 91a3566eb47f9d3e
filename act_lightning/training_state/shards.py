"""Checkpoints that are a folder, to which every process of a sharded fit writes its part, as one process reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint

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
    stored = _load_distributed_checkpoint(folder)
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
