"""Which channels masks share, and how stable masks are.

Findings 3 and 4 of the paper (§3.3, Tables 1 and 5, Figures 3, 20 and 21, https://arxiv.org/abs/2601.09398).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations, permutations

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
_REPEATS = 20


def top_masks(scores: Mapping[str, Tensor], ratio: float, allowed: Tensor | None = None) -> dict[str, Tensor]:
    """The mask of the top p among ``allowed`` channels (bool ``[channels]``, by default all) of every ability."""
    masks = {}
    for name, values in scores.items():
        ranked = torch.ones_like(values, dtype=torch.bool) if allowed is None else allowed
        masks[name] = top_channels(values, ratio, ranked)
    return masks


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
    """The overlap to expect if the column's mask were as many channels drawn at random: k / n."""
    shares = {name: size(mask) / mask.numel() for name, mask in masks.items()}
    return pd.DataFrame([shares] * len(masks), list(masks))


def chance_overlap_by_module(masks: Masks, inventory: ChannelInventory) -> pd.DataFrame:
    """The overlap to expect if the column's mask were drawn at random within every module.

    ``Σ_m k_row,m k_col,m / n_m / k_row``: what two masks share only because they favor the same modules.
    """
    counts = np.stack([module_counts(mask, inventory) for mask in masks.values()])
    sizes = np.array([module.count for module in inventory.modules])
    expected = (counts / sizes) @ counts.T / counts.sum(axis=1, keepdims=True)
    return pd.DataFrame(expected, list(masks), list(masks))


def cross_language_overlap(masks: Masks, abilities: Mapping[str, Ability]) -> pd.DataFrame:
    """What each mask shares with the union of another language's domains (last column of Table 1).

    A row per ability with a language and, in ``language``, each other language, and ``others`` for the union of
    several: ``shared`` channels, ``overlap``, and ``chance``, the union's share of all channels. Empty with fewer than
    two languages.
    """
    by_language: dict[str, list[Tensor]] = {}
    for label, ability in abilities.items():
        if ability.language and label in masks:
            by_language.setdefault(ability.language, []).append(masks[label])
    rows = []
    for label, mask in masks.items():
        language = abilities[label].language
        unions = {key: union(parts) for key, parts in by_language.items() if language and key != language}
        if len(unions) > 1:
            unions["others"] = union(list(unions.values()))
        rows += [(label, key, *_compare(mask, other)) for key, other in unions.items()]
    return pd.DataFrame(rows, columns=["ability", "language", "shared", "overlap", "chance"])


def _compare(row: Tensor, column: Tensor) -> tuple[int, float, float]:
    """Shared channels, overlap by the row's mask, and the overlap that chance gives."""
    shared = size(row & column)
    return shared, shared / size(row), size(column) / column.numel()


def overlap_over_ratios(
    scores: Mapping[str, Tensor], ratios: Sequence[float], groups: Mapping[tuple[str, str], str]
) -> pd.DataFrame:
    """Mean overlap of groups of pairs of abilities (row, column), such as "same language", at several p.

    Columns: ``ratio``, ``group``, ``pairs`` and ``overlap``.
    """
    largest = top_masks(scores, max(ratios))
    ranking = {name: rank(values, largest[name]) for name, values in scores.items()}
    frames = {}
    for ratio in ratios:
        masks = {name: torch.zeros_like(mask) for name, mask in largest.items()}
        for name, mask in masks.items():
            mask[ranking[name][: ratio_count(mask.numel(), ratio)]] = True
        frames[ratio] = overlap_by_group({"overlap": overlap_matrix(masks)}, groups)
    return pd.concat(frames, names=["ratio", "group"]).reset_index()


def overlap_by_group(matrices: Mapping[str, pd.DataFrame], groups: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Means of overlaps, a row per group of pairs of abilities: ``pairs``, and the mean of each matrix."""
    members = pd.Series(groups)
    values = {
        name: pd.Series({pair: matrix.loc[pair] for pair in groups}, dtype=float) for name, matrix in matrices.items()
    }
    frame = pd.DataFrame({name: series.groupby(members, sort=False).mean() for name, series in values.items()})
    frame.insert(0, "pairs", members.value_counts())
    return frame


def pair_groups(abilities: Mapping[str, Ability]) -> dict[tuple[str, str], str]:
    """Whether two abilities share language or domain, for every ordered pair of different ones."""
    groups = {}
    for row, column in permutations(abilities, 2):
        first, second = abilities[row], abilities[column]
        if first.language is None or second.language is None:
            group = "different abilities"
        elif first.language == second.language:
            group = "same language, other domain"
        elif first.domain == second.domain:
            group = "same domain, other language"
        else:
            group = "other language and domain"
        groups[row, column] = group
    return groups


def consistency(masks: Mapping[str, Masks]) -> pd.DataFrame:
    """What the masks of one ability share across pairs of models (Figures 3 and 21).

    ``masks`` holds bool ``[channels]`` by ability, by pair of models. A row for every two pairs of models and ability
    that both have: ``first``, ``second``, ``ability``, ``shared``, ``overlap`` (of the first pair's mask) and
    ``chance``.
    """
    rows = [
        (first, second, ability, *_compare(masks[first][ability], masks[second][ability]))
        for first, second in combinations(masks, 2)
        for ability in masks[first]
        if ability in masks[second]
    ]
    return pd.DataFrame(rows, columns=["first", "second", "ability", "shared", "overlap", "chance"])


def mask_stability(chunks: Mapping[str, ChunkScores], ratio: float, repeats: int = _REPEATS) -> pd.DataFrame:
    """How much of a mask other samples of the same ability would have selected.

    A row per ability: ``samples``, ``chunks``, the mean ``bootstrap`` overlap with its lowest and highest twentieth
    (``5 %``, ``95 %``), and the mean ``split half`` overlap.
    """
    rows = {}
    for name, chunk in chunks.items():
        scores, choose = contenders(chunk.scores, ratio)
        drawn = pd.Series(bootstrap_overlaps(scores, chunk.tokens, choose, repeats))
        halves = split_half_overlaps(scores, chunk.tokens, choose, repeats)
        rows[name] = {
            "samples": sum(chunk.samples),
            "chunks": len(chunk.samples),
            "bootstrap": drawn.mean(),
            "5 %": drawn.quantile(0.05),
            "95 %": drawn.quantile(0.95),
            "split half": pd.Series(halves, dtype=float).mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def overlaps_by_samples(chunks: Mapping[str, ChunkScores], ratio: float, repeats: int = _REPEATS) -> pd.DataFrame:
    """The overlap of each whole mask with that of fewer samples, ``repeats`` subsets of each size.

    Columns: ``ability``, ``chunks``, ``samples`` (mean number of samples of these chunks) and ``overlap`` (mean).
    """
    rows = []
    for name, chunk in chunks.items():
        scores, choose = contenders(chunk.scores, ratio)
        for subset in overlap_by_samples(scores, chunk.tokens, chunk.samples, choose, repeats):
            mean = sum(subset.overlaps) / len(subset.overlaps)
            rows.append((name, subset.chunks, subset.samples, mean))
    return pd.DataFrame(rows, columns=["ability", "chunks", "samples", "overlap"])


def samples_for(overlaps: pd.DataFrame, wanted: float) -> dict[str, float | None]:
    """How many samples give each ability at least the overlap ``wanted`` with its whole mask, or ``None`` for all."""
    samples: dict[str, float | None] = {}
    for name, part in overlaps.groupby("ability", sort=False):
        fewer = part[(part["overlap"] >= wanted) & (part["chunks"] < part["chunks"].max())]
        samples[str(name)] = float(fewer["samples"].min()) if len(fewer) else None
    return samples


def contenders(chunks: Tensor, ratio: float) -> tuple[Tensor, Choose]:
    """The channels that a mean of some chunks can select at all, and a function that selects as many of them.

    Chunks are float32 ``[chunks, channels]``. Of ⌊n·p⌋ channels every chunk's score is at least t, so no mean selects a
    channel whose highest score is below it: of 1.75 million, a few in a hundred are left. Returns float32 ``[chunks,
    contenders]``, and the function from contenders' scores to their mask.
    """
    count = ratio_count(chunks.shape[1], ratio)
    least = chunks.amin(0)
    threshold = torch.kthvalue(least, least.numel() - count + 1).values
    scores = chunks[:, chunks.amax(0) >= threshold]

    def choose(values: Tensor) -> Tensor:
        return top_channels(values, Fraction(count, values.numel()), torch.ones_like(values, dtype=torch.bool))

    return scores, choose
