"""Findings 3 and 4: which channels masks share (paper §3.3, Tables 1 and 5, Figures 3, 20 and 21)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from act_lightning.analysis.distribution import module_counts, size
from act_lightning.analysis.paper import Ability
from act_lightning.channels import ChannelInventory
from act_lightning.masks import (
    Choose,
    bootstrap_overlaps,
    overlap_by_samples,
    rank,
    ratio_count,
    split_half_overlaps,
    top_channels,
    union,
)
from act_lightning.scores import ChunkScores

Masks = Mapping[str, Tensor]
CROSS_LINGUAL = "Cross-Lingual"


def top_masks(scores: Mapping[str, Tensor], ratio: float, allowed: Tensor | None = None) -> dict[str, Tensor]:
    """The mask of the top p of every ability.

    Args:
        scores: float32 ``[channels]`` by ability.
        ratio: p in (0, 1].
        allowed: Bool ``[channels]``, the channels that are ranked; by default all.
    """
    return {
        name: top_channels(values, ratio, torch.ones_like(values, dtype=torch.bool) if allowed is None else allowed)
        for name, values in scores.items()
    }


def shared_channels(masks: Masks) -> pd.DataFrame:
    """How many channels every two masks share; the diagonal holds their sizes.

    >>> shared_channels({"a": torch.tensor([True, True]), "b": torch.tensor([False, True])}).to_numpy().tolist()
    [[2, 1], [1, 1]]
    """
    packed = np.stack([np.packbits(mask.numpy()) for mask in masks.values()])
    counts = [np.bitwise_count(packed & row).sum(axis=1, dtype=np.int64) for row in packed]
    return pd.DataFrame(np.stack(counts), list(masks), list(masks))


def overlap_matrix(masks: Masks) -> pd.DataFrame:
    """The share of the row's mask that the column's mask also selects (Table 1, Figure 20)."""
    shared = shared_channels(masks)
    return shared.div(pd.Series({name: size(mask) for name, mask in masks.items()}), axis=0)


def chance_overlap(masks: Masks) -> pd.DataFrame:
    """The overlap to be expected if the column's mask were as many channels drawn at random: k / n."""
    shares = {name: size(mask) / mask.numel() for name, mask in masks.items()}
    return pd.DataFrame([shares] * len(masks), list(masks))


def chance_overlap_by_module(masks: Masks, inventory: ChannelInventory) -> pd.DataFrame:
    """The overlap to be expected if the column's mask were drawn at random within every module.

    ``Σ_m k_row,m k_col,m / n_m / k_row``: what two masks share only because they favor the same modules.

    Args:
        masks: Bool ``[channels]`` by ability.
        inventory: The channels.
    """
    counts = np.stack([module_counts(mask, inventory) for mask in masks.values()])
    sizes = np.array([module.count for module in inventory.modules])
    expected = (counts / sizes) @ counts.T / counts.sum(axis=1, keepdims=True)
    return pd.DataFrame(expected, list(masks), list(masks))


def cross_language_overlap(masks: Masks, abilities: Mapping[str, Ability]) -> pd.DataFrame:
    """What each mask shares with the union of another language's domains (last column of Table 1).

    Args:
        masks: Bool ``[channels]`` by label.
        abilities: The abilities by label.

    Returns:
        A row per ability that has a language and, in ``language``, each other language, and ``others`` for all of
        them together where there are several: ``shared`` channels, ``overlap``, and ``chance``, the union's share of
        all channels. Empty with fewer than two languages.
    """
    by_language: dict[str, list[Tensor]] = {}
    for label, ability in abilities.items():
        if ability.language and label in masks:
            by_language.setdefault(ability.language, []).append(masks[label])
    rows = []
    for label in masks:
        others = {key: union(parts) for key, parts in by_language.items() if key != abilities[label].language}
        if abilities[label].language and len(others) > 1:
            others["others"] = union(list(others.values()))
        if abilities[label].language:
            rows += [(label, key, *_shared(masks[label], joined)) for key, joined in others.items()]
    return pd.DataFrame(rows, columns=["ability", "language", "shared", "overlap", "chance"])


def _shared(row: Tensor, column: Tensor) -> tuple[int, float, float]:
    shared = size(row & column)
    return shared, shared / size(row), size(column) / column.numel()


def overlap_over_ratios(
    scores: Mapping[str, Tensor], ratios: Sequence[float], groups: Mapping[tuple[str, str], str]
) -> pd.DataFrame:
    """Mean overlap of groups of pairs of abilities at several p.

    Args:
        scores: float32 ``[channels]`` by ability.
        ratios: Values of p.
        groups: Name of the group of each pair (row, column), such as "same language".

    Returns:
        Columns ``ratio``, ``group``, ``pairs`` and ``overlap``.
    """
    heads = {name: rank(values, top_masks({name: values}, max(ratios))[name]) for name, values in scores.items()}
    frames = {}
    for ratio in ratios:
        masks = {name: _first(heads[name], ratio, values.numel()) for name, values in scores.items()}
        frames[ratio] = overlap_by_group({"overlap": overlap_matrix(masks)}, groups)
    return pd.concat(frames, names=["ratio", "group"]).reset_index()


def _first(order: Tensor, ratio: float, total: int) -> Tensor:
    mask = torch.zeros(total, dtype=torch.bool)
    mask[order[: ratio_count(total, ratio)]] = True
    return mask


def overlap_by_group(matrices: Mapping[str, pd.DataFrame], groups: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Means of overlaps over groups of pairs of abilities.

    Args:
        matrices: Overlaps, rows × columns, by what they are.
        groups: Name of the group of each pair (row, column).

    Returns:
        A row per group: ``pairs``, and the mean of each matrix.
    """
    members = pd.Series(groups)
    values = {
        name: pd.Series({pair: matrix.loc[pair] for pair in groups}, dtype=float) for name, matrix in matrices.items()
    }
    frame = pd.DataFrame({name: series.groupby(members, sort=False).mean() for name, series in values.items()})
    frame.insert(0, "pairs", members.value_counts())
    return frame


def pair_groups(abilities: Mapping[str, Ability]) -> dict[tuple[str, str], str]:
    """Whether two abilities share language or domain, for every ordered pair of different ones."""
    return {
        (row, column): _relation(abilities[row], abilities[column])
        for row in abilities
        for column in abilities
        if row != column
    }


def _relation(row: Ability, column: Ability) -> str:
    if row.language is None or column.language is None:
        return "different abilities"
    if row.language == column.language:
        return "same language, other domain"
    return "same domain, other language" if row.domain == column.domain else "other language and domain"


def consistency(masks: Mapping[str, Masks]) -> pd.DataFrame:
    """What the masks of one ability share across pairs of models (Figures 3 and 21).

    Args:
        masks: Bool ``[channels]`` by ability, by pair of models.

    Returns:
        A row for every two pairs of models and ability that both have: ``first``, ``second``, ``ability``,
        ``shared``, ``overlap`` (of the first pair's mask) and ``chance``.
    """
    rows = [
        (first, second, ability, *_shared(masks[first][ability], masks[second][ability]))
        for first, second in combinations(masks, 2)
        for ability in masks[first]
        if ability in masks[second]
    ]
    return pd.DataFrame(rows, columns=["first", "second", "ability", "shared", "overlap", "chance"])


_REPEATS = 20


def mask_stability(chunks: Mapping[str, ChunkScores], ratio: float, repeats: int = _REPEATS) -> pd.DataFrame:
    """How much of a mask other samples of the same ability would have selected.

    Args:
        chunks: Scores of each chunk of an ability's samples, by ability.
        ratio: p.
        repeats: How often is drawn.

    Returns:
        A row per ability: ``samples``, ``chunks``, the mean ``bootstrap`` overlap with its lowest and highest twentieth
        (``5 %``, ``95 %``), and the mean ``split half`` overlap.
    """
    rows = {}
    for name, one in chunks.items():
        scores, choose = contenders(one.scores, ratio)
        drawn = pd.Series(bootstrap_overlaps(scores, one.tokens, choose, repeats))
        halves = split_half_overlaps(scores, one.tokens, choose, repeats)
        rows[name] = {
            "samples": sum(one.samples),
            "chunks": len(one.samples),
            "bootstrap": drawn.mean(),
            "5 %": drawn.quantile(0.05),
            "95 %": drawn.quantile(0.95),
            "split half": pd.Series(halves, dtype=float).mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def overlaps_by_samples(chunks: Mapping[str, ChunkScores], ratio: float, repeats: int = _REPEATS) -> pd.DataFrame:
    """The overlap of each whole mask with that of fewer samples.

    Args:
        chunks: Scores of each chunk of an ability's samples, by ability.
        ratio: p.
        repeats: How many subsets of each size are drawn.

    Returns:
        Columns ``ability``, ``chunks``, ``samples`` (mean number of samples of these chunks) and ``overlap`` (mean).
    """
    rows = []
    for name, one in chunks.items():
        scores, choose = contenders(one.scores, ratio)
        found = overlap_by_samples(scores, one.tokens, one.samples, choose, repeats)
        rows += [(name, some.chunks, some.samples, sum(some.overlaps) / len(some.overlaps)) for some in found]
    return pd.DataFrame(rows, columns=["ability", "chunks", "samples", "overlap"])


def samples_for(overlaps: pd.DataFrame, wanted: float) -> dict[str, float | None]:
    """How many samples each ability needs for so much of its whole mask, by ability; ``None`` where all were needed.

    Args:
        overlaps: As :func:`overlaps_by_samples` gives it.
        wanted: An overlap in (0, 1].
    """
    found: dict[str, float | None] = {}
    for name, part in overlaps.groupby("ability", sort=False):
        fewer = part[(part["overlap"] >= wanted) & (part["chunks"] < part["chunks"].max())]
        found[str(name)] = float(fewer["samples"].min()) if len(fewer) else None
    return found


def contenders(chunks: Tensor, ratio: float) -> tuple[Tensor, Choose]:
    """The channels that a mean of some of the chunks can select at all, and what selects as many of them.

    Of ⌊n·p⌋ channels every chunk's score is at least t, so no mean selects a channel whose highest score is below it:
    of 1.75 million, a few in a hundred are left.

    Args:
        chunks: The scores of each chunk, float32 ``[chunks, channels]``.
        ratio: p.

    Returns:
        float32 ``[chunks, contenders]``, and what makes a mask of scores of contenders.
    """
    count = ratio_count(chunks.shape[1], ratio)
    least = chunks.amin(0)
    needed = torch.kthvalue(least, least.numel() - count + 1).values
    scores = chunks[:, chunks.amax(0) >= needed]

    def choose(values: Tensor) -> Tensor:
        return top_channels(values, Fraction(count, values.numel()), torch.ones_like(values, dtype=torch.bool))

    return scores, choose
