"""How scores are distributed, and where they and selected channels lie.

Findings 1 and 2 of the paper (§3.2, Figures 1 and 6 to 19, https://arxiv.org/abs/2601.09398).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from act_lightning.architecture import EMBEDDING_NAMES, HEAD_NAMES, module_type, split_layer
from act_lightning.channels import ChannelInventory
from act_lightning.masks import ratio_count

THRESHOLDS = (0.1, 0.5, 1.0, 2.0, 4.5, 10.0)
"""Scores above which channels are counted; the paper names 4.5."""
OUTSIDE = "outside"
"""The layer of modules outside all layers: embedding, final norm, head."""


def ccdf(values: Tensor, points: int = 400) -> pd.DataFrame:
    """The complementary cumulative distribution function, P(value > threshold), of finite values, float ``[n]``.

    The thresholds are values at ranks that are evenly spaced on a logarithmic scale, so that every one of the largest
    is there, and the shares are exact. Columns: ``threshold``, ascending, and ``share``, from below 1 to 0.

    >>> ccdf(torch.tensor([4.0, 1.0, 2.0, 2.0])).to_dict("list")
    {'threshold': [1.0, 2.0, 4.0], 'share': [0.75, 0.25, 0.0]}
    """
    ascending, n = np.sort(values.numpy()), values.numel()
    ranks = np.unique(np.geomspace(1, n, points).round().astype(int).clip(1, n))
    thresholds = np.unique(ascending[n - ranks])
    above = n - np.searchsorted(ascending, thresholds, side="right")
    return pd.DataFrame({"threshold": thresholds.astype(float), "share": above / n})


def ccdfs(scores: Mapping[str, Tensor], points: int = 400) -> pd.DataFrame:
    """The CCDF of every ability, one after the other, with the column ``ability``."""
    return _concat("ability", {name: ccdf(values, points) for name, values in scores.items()})


def _concat(column: str, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames one after the other, with their keys as first column."""
    return pd.concat(frames, names=[column]).reset_index(level=0).reset_index(drop=True)


def gini(values: Tensor) -> float:
    """The Gini coefficient, ``Σ_i (2i − n − 1) x_(i) / (n Σ x)`` over ascending values: 0 all alike, 1 all in one.

    No value, float ``[n]``, may be negative, and not all may be 0.

    >>> gini(torch.tensor([1.0, 1.0])), gini(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    (0.0, 0.75)
    """
    ascending, n = np.sort(values.numpy()).astype(float), values.numel()
    weights = np.arange(1 - n, n, 2, dtype=float)
    return float(weights @ ascending / (n * ascending.sum()))


def share_held(values: Tensor, ratio: float) -> float:
    """The share of the sum of all values that the ⌊n·ratio⌋ largest hold.

    >>> share_held(torch.tensor([6.0, 1.0, 2.0, 1.0]), 0.25)
    0.6
    """
    largest = torch.topk(values, ratio_count(values.numel(), ratio)).values
    return float(largest.sum(dtype=torch.float64) / values.sum(dtype=torch.float64))


def concentration(
    scores: Mapping[str, Tensor], ratio: float = 0.01, thresholds: Sequence[float] = THRESHOLDS
) -> pd.DataFrame:
    """How few channels hold how much, a row per ability; scores are float32 ``[channels]``, those below 0 count as 0.

    Returns:
        Columns ``mean``, ``median``, ``lowest selected`` (the smallest score among the top p), ``max``, ``Gini``,
        ``held by top p`` (of the total) and, as shares of all channels, ``> threshold``.
    """
    rows = {}
    for name, values in scores.items():
        values = values.clamp(min=0)
        ascending, n = torch.from_numpy(np.sort(values.numpy())), values.numel()
        k = ratio_count(n, ratio)
        above = n - torch.searchsorted(ascending, torch.tensor(thresholds), right=True)
        rows[name] = {
            "mean": float(ascending.mean(dtype=torch.float64)),
            "median": float(ascending[(n - 1) // 2]),
            "lowest selected": float(ascending[n - k]) if k else float("nan"),
            "max": float(ascending[-1]),
            "Gini": gini(ascending),
            "held by top p": share_held(ascending, ratio),
            **{f"> {threshold:g}": int(count) / n for threshold, count in zip(thresholds, above, strict=True)},
        }
    return pd.DataFrame(rows).T


def places(inventory: ChannelInventory) -> pd.DataFrame:
    """The location of each module.

    Returns:
        A row per module in the model's order: ``module``, ``layer`` (its number as text, or ``outside``), ``type``
        (the last part of its name, or as many parts as make it unique in its layer; of experts with that word) and
        ``channels``.
    """
    names = [module.name for module in inventory.modules]
    locations = [split_layer(name) for name in names]
    layers, paths = [layer or OUTSIDE for layer, _ in locations], [path for _, path in locations]
    leaves = [module_type(path) for path in paths]
    paths_of_leaf = defaultdict(set)
    for layer, path, leaf in zip(layers, paths, leaves, strict=True):
        if layer != OUTSIDE:
            paths_of_leaf[leaf].add(path)
    types = [
        path if layer != OUTSIDE and len(paths_of_leaf[leaf]) > 1 else leaf
        for layer, path, leaf in zip(layers, paths, leaves, strict=True)
    ]
    counts = [module.count for module in inventory.modules]
    return pd.DataFrame({"module": names, "layer": layers, "type": types, "channels": counts})


def ccdfs_by(values: Tensor, inventory: ChannelInventory, by: str, points: int = 200) -> pd.DataFrame:
    """The CCDF of the scores, float32 ``[channels]``, within each ``layer``, or within each ``type`` of module.

    Columns: ``layer`` or ``type``, ``threshold`` and ``share``.
    """
    groups = places(inventory).groupby(by, sort=False).indices
    spans = [span for _, span in inventory.spans()]
    frames = {group: ccdf(torch.cat([values[spans[i]] for i in members]), points) for group, members in groups.items()}
    return _concat(by, frames)


def selected_by_module(masks: Mapping[str, Tensor], inventory: ChannelInventory) -> pd.DataFrame:
    """How many channels of each module each mask, bool ``[channels]``, selects, and which share of its rows.

    A row per ability and module: ``ability``, the columns of :func:`places`, ``selected`` and ``share``.
    """
    modules, frames = places(inventory), {}
    for name, mask in masks.items():
        counts = module_counts(mask, inventory)
        frames[name] = modules.assign(selected=counts, share=counts / modules["channels"])
    return _concat("ability", frames)


def module_counts(mask: Tensor, inventory: ChannelInventory) -> np.ndarray:
    """How many channels of each module a mask selects, int64 ``[modules]``."""
    starts = [span.start for _, span in inventory.spans()]
    return np.add.reduceat(mask.numpy(), starts, dtype=np.int64)


def size(mask: Tensor) -> int:
    """How many channels a mask selects."""
    return int(np.count_nonzero(mask.numpy()))


def by_layer_and_type(selected: pd.DataFrame, value: str) -> pd.DataFrame:
    """Column ``selected`` or ``share`` of one ability's part of :func:`selected_by_module` as a matrix, layers × types.

    It is NaN where there is no module.
    """
    matrix = selected.pivot(index="layer", columns="type", values=value)
    matrix = matrix.loc[selected["layer"].unique(), selected["type"].unique()]
    return matrix.sort_index(key=lambda layers: layers.map(lambda layer: np.inf if layer == OUTSIDE else int(layer)))


def selected_by_expert(mask: Tensor, inventory: ChannelInventory, experts: Mapping[str, int]) -> pd.DataFrame:
    """Which share of each expert's channels a mask, bool ``[channels]``, selects, as a matrix, layers × experts.

    ``experts`` are numbers of experts, by the module that holds them. NaN where a layer has no expert of that number.
    """
    selected, channels = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for module, span in inventory.spans():
        count = experts.get(module.name.rpartition(".")[0], 0)
        for number, part in enumerate(mask[span].view(count, -1).sum(1).tolist() if count else ()):
            place = split_layer(module.name)[0] or OUTSIDE, number
            selected[place] += part
            channels[place] += module.count // count
    return _by_layer({place: part / channels[place] for place, part in selected.items()})


def used_by_expert(usage: Mapping[str, Tensor], tokens: int) -> pd.DataFrame:
    """Which share of the answer tokens the target routes to each expert, as a matrix, layers × experts.

    ``usage`` is that of :func:`~act_lightning.scores.read_usage`, on ``tokens`` answer tokens.
    """
    shares: dict[tuple[str, int], float] = {}
    for name, counts in usage.items():
        layer = split_layer(name)[0] or OUTSIDE
        shares |= {(layer, number): count / tokens for number, count in enumerate(counts[0].tolist())}
    return _by_layer(shares)


def _by_layer(values: Mapping[tuple[str, int], float]) -> pd.DataFrame:
    """Values by layer and number as a matrix, both ascending."""
    matrix = pd.Series(values, dtype=float).unstack()
    order = sorted(matrix.index, key=lambda layer: np.inf if layer == OUTSIDE else int(layer))
    return matrix.loc[order].sort_index(axis=1)


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
    head, embedding = (torch.zeros(inventory.total, dtype=torch.bool) for _ in range(2))
    for module, span in inventory.spans():
        leaf = module.name.rsplit(".", 1)[-1]
        head[span], embedding[span] = leaf in HEAD_NAMES, leaf in EMBEDDING_NAMES
    return head, embedding


def head_and_embedding(masks: Mapping[str, Tensor], inventory: ChannelInventory) -> pd.DataFrame:
    """How many of the selected channels are rows of the head or features of an embedding, a row per mask.

    Columns: ``selected``, ``lm_head`` and ``embedding`` (channels), and the last two again as shares.
    """
    head, embedding = vocabulary_modules(inventory)
    rows = {name: [size(mask & part) for part in (mask, head, embedding)] for name, mask in masks.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["selected", "lm_head", "embedding"])
    for part in ("lm_head", "embedding"):
        frame[f"{part} share"] = frame[part] / frame["selected"]
    return frame
