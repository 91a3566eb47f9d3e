"""Finding 2: where large scores and selected channels lie (paper §3.2, Figures 1b, 1c, 13 to 19)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from act_lightning.analysis.distribution import ccdf
from act_lightning.architecture import EMBEDDING_NAMES, HEAD_NAMES
from act_lightning.channels import ChannelInventory

OUTSIDE = "outside"
"""The layer of modules that stand in none: embedding, final norm, head."""


def places(inventory: ChannelInventory) -> pd.DataFrame:
    """Where each module stands.

    Returns:
        A row per module in the model's order: ``module``, ``layer`` (its number as text, or ``outside``), ``type``
        (the last part of its name, or as many as tell it from others of its layer) and ``channels``.
    """
    split = [_split(module.name) for module in inventory.modules]
    paths = defaultdict(set)
    for layer, path in split:
        if layer != OUTSIDE:
            paths[path.rsplit(".", 1)[-1]].add(path)
    types = [
        path if layer != OUTSIDE and len(paths[path.rsplit(".", 1)[-1]]) > 1 else path.rsplit(".", 1)[-1]
        for layer, path in split
    ]
    return pd.DataFrame(
        {
            "module": [module.name for module in inventory.modules],
            "layer": [layer for layer, _ in split],
            "type": types,
            "channels": [module.count for module in inventory.modules],
        }
    )


def _split(name: str) -> tuple[str, str]:
    """Layer and path within it."""
    found = re.search(r"\.(\d+)\.(.+)$", name)
    return (found.group(1), found.group(2)) if found else (OUTSIDE, name)


def ccdfs_by(values: Tensor, inventory: ChannelInventory, by: str, points: int = 200) -> pd.DataFrame:
    """The CCDF of the scores within each layer, or within each type of module.

    Args:
        values: float32 ``[channels]``.
        inventory: The channels.
        by: ``layer`` or ``type``.
        points: At most how many thresholds each.

    Returns:
        Columns ``layer`` or ``type``, ``threshold`` and ``share``.
    """
    groups = places(inventory).groupby(by, sort=False).indices
    spans = [span for _, span in inventory.spans()]
    frames = {group: ccdf(torch.cat([values[spans[i]] for i in members]), points) for group, members in groups.items()}
    return pd.concat(frames, names=[by]).reset_index(level=0).reset_index(drop=True)


def selected_by_module(masks: Mapping[str, Tensor], inventory: ChannelInventory) -> pd.DataFrame:
    """How many channels of each module each mask selects, and which share of its rows.

    Args:
        masks: Bool ``[channels]`` by ability.
        inventory: The channels.

    Returns:
        A row per ability and module: ``ability``, the columns of :func:`places`, ``selected`` and ``share``.
    """
    where, frames = places(inventory), {}
    for name, mask in masks.items():
        chosen = module_counts(mask, inventory)
        frames[name] = where.assign(selected=chosen, share=chosen / where["channels"])
    return pd.concat(frames, names=["ability"]).reset_index(level=0).reset_index(drop=True)


def module_counts(mask: Tensor, inventory: ChannelInventory) -> np.ndarray:
    """How many channels of each module a mask selects, int64 ``[modules]``."""
    starts = [span.start for _, span in inventory.spans()]
    return np.add.reduceat(mask.numpy(), starts, dtype=np.int64)


def size(mask: Tensor) -> int:
    """How many channels a mask selects."""
    return int(np.count_nonzero(mask.numpy()))


def by_layer_and_type(selected: pd.DataFrame, value: str) -> pd.DataFrame:
    """One ability's part of :func:`selected_by_module` as a matrix, layers × types; NaN where there is no module.

    Args:
        selected: The rows of one ability.
        value: ``selected`` or ``share``.
    """
    matrix = selected.pivot(index="layer", columns="type", values=value)
    return matrix.loc[selected["layer"].unique(), selected["type"].unique()].sort_index(key=_layer_order)


def _layer_order(layers: pd.Index) -> pd.Index:
    return layers.map(lambda layer: float("inf") if layer == OUTSIDE else int(layer))


def composition(masks: Mapping[str, Tensor], inventory: ChannelInventory) -> pd.DataFrame:
    """Which share of each mask lies in which type of module; rows are abilities and add up to 1.

    A last row, ``all channels``, gives the share of each type among all channels: a random mask's expectation.
    """
    selected = selected_by_module(masks, inventory)
    counts = selected.pivot_table(index="ability", columns="type", values="selected", aggfunc="sum", sort=False)
    totals = places(inventory).groupby("type", sort=False)["channels"].sum()
    shares = counts.div(counts.sum(axis=1), axis=0)[totals.index]
    shares.loc["all channels"] = totals / totals.sum()
    return shares.rename_axis(index=None, columns=None)


def vocabulary_modules(inventory: ChannelInventory) -> tuple[Tensor, Tensor]:
    """The channels of the language model's head, and those of embeddings: two masks, bool ``[channels]``."""
    return _owned_by(inventory, HEAD_NAMES), _owned_by(inventory, EMBEDDING_NAMES)


def _owned_by(inventory: ChannelInventory, leaves: Sequence[str]) -> Tensor:
    owned = torch.zeros(inventory.total, dtype=torch.bool)
    for module, span in inventory.spans():
        owned[span] = module.name.rsplit(".", 1)[-1] in leaves
    return owned


def head_and_embedding(masks: Mapping[str, Tensor], inventory: ChannelInventory) -> pd.DataFrame:
    """How many of the selected channels are rows of the head or features of an embedding, a row per mask.

    Returns:
        Columns ``selected``, ``lm_head`` and ``embedding`` (channels), and the last two again as shares.
    """
    head, embedding = vocabulary_modules(inventory)
    rows = {name: [size(mask & part) for part in (mask, head, embedding)] for name, mask in masks.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["selected", "lm_head", "embedding"])
    for part in ("lm_head", "embedding"):
        frame[f"{part} share"] = frame[part] / frame["selected"]
    return frame
