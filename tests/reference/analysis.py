"""The statistics of reports once more, slowly: sorted lists, loops over channels, sets of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.reference.channels import pieces


def share_above(values: Sequence[float], threshold: float) -> float:
    """Share of values above a threshold."""
    return sum(value > threshold for value in values) / len(values)


def gini(values: Sequence[float]) -> float:
    """Half the mean absolute difference of all pairs, over the mean."""
    n, mean = len(values), sum(values) / len(values)
    return sum(abs(a - b) for a in values for b in values) / (2 * n * n * mean)


def share_held(values: Sequence[float], count: int) -> float:
    """Part of the sum that the largest ``count`` values are."""
    return sum(sorted(values, reverse=True)[:count]) / sum(values)


def chosen(mask: Tensor) -> set[int]:
    """The numbers of the channels of a mask."""
    return {i for i, value in enumerate(mask.tolist()) if value}


def overlap(row: Tensor, column: Tensor) -> float:
    """Share of the row's channels that are the column's too."""
    return len(chosen(row) & chosen(column)) / len(chosen(row))


def overlap_by_module(row: Tensor, column: Tensor, owners: Sequence[str]) -> float:
    """Expected overlap when each module's part of the column is drawn anew: one row channel after the other."""
    members: dict[str, list[int]] = {}
    for i, owner in enumerate(owners):
        members.setdefault(owner, []).append(i)
    picked, total = chosen(column), 0.0
    for i in chosen(row):
        mates = members[owners[i]]
        total += sum(j in picked for j in mates) / len(mates)
    return total / len(chosen(row))


def mean_overlaps(masks: Mapping[str, Tensor], same: Mapping[tuple[str, str], bool]) -> float:
    """Mean overlap over the pairs that are marked."""
    found = [overlap(masks[row], masks[column]) for (row, column), marked in same.items() if marked]
    return sum(found) / len(found)


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's correlation of mean ranks, each found by counting."""
    ranks = [[_rank(values, value) for value in values] for values in (left, right)]
    means = [sum(values) / len(values) for values in ranks]
    x, y = ([value - mean for value in values] for values, mean in zip(ranks, means, strict=True))
    return sum(a * b for a, b in zip(x, y, strict=True)) / (sum(a * a for a in x) * sum(b * b for b in y)) ** 0.5


def _rank(values: Sequence[float], value: float) -> float:
    below, equal = sum(other < value for other in values), sum(other == value for other in values)
    return below + (equal + 1) / 2


def weight_change(
    target: torch.nn.Module, source: torch.nn.Module, channels: Sequence[tuple[str, object, int]]
) -> list[float]:
    """ℓ2 norm of the difference of everything a channel owns, one channel at a time."""
    ours, theirs = dict(target.named_modules()), dict(source.named_modules())
    norms = []
    for name, _, i in channels:
        pairs = zip(pieces(ours[name], i), pieces(theirs[name], i), strict=True)
        squares = sum(
            float((b[j].detach().double() - a[k].detach().double()).square().sum()) for (a, k), (b, j) in pairs
        )
        norms.append(squares**0.5)
    return norms
