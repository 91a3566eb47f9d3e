"""Finding 1: scores are heavy-tailed (paper §3.2, Figures 1a and 6 to 12, https://arxiv.org/abs/2601.09398)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from act_lightning.masks import ratio_count

THRESHOLDS = (0.1, 0.5, 1.0, 2.0, 4.5, 10.0)
"""Scores above which channels are counted; the paper speaks of 4.5."""


def ccdf(values: Tensor, points: int = 400) -> pd.DataFrame:
    """The complementary cumulative distribution function, P(value > threshold), at some of the values.

    The thresholds are values at ranks that are evenly spaced on a logarithmic scale, so that every one of the
    largest is there, and the shares are exact.

    Args:
        values: float ``[n]``, finite.
        points: How many ranks.

    Returns:
        Columns ``threshold``, ascending, and ``share``, from below 1 to 0.

    >>> ccdf(torch.tensor([4.0, 1.0, 2.0, 2.0])).to_dict("list")
    {'threshold': [1.0, 2.0, 4.0], 'share': [0.75, 0.25, 0.0]}
    """
    ascending, n = np.sort(values.numpy()), values.numel()
    ranks = np.unique(np.geomspace(1, n, points).round().astype(int).clip(1, n))
    thresholds = np.unique(ascending[n - ranks])
    above = n - np.searchsorted(ascending, thresholds, side="right")
    return pd.DataFrame({"threshold": thresholds.astype(float), "share": above / n})


def ccdfs(scores: Mapping[str, Tensor], points: int = 400) -> pd.DataFrame:
    """The CCDF of every ability, one below the other, told apart by the column ``ability``."""
    return _named("ability", {name: ccdf(values, points) for name, values in scores.items()})


def _named(column: str, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, names=[column]).reset_index(level=0).reset_index(drop=True)


def gini(values: Tensor) -> float:
    """The Gini coefficient, ``Σ_i (2i − n − 1) x_(i) / (n Σ x)`` over ascending values: 0 all alike, 1 all in one.

    Args:
        values: float ``[n]``, none negative, not all 0.

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
    """How few channels hold how much, a row per ability.

    Args:
        scores: float32 ``[channels]`` by ability.
        ratio: The share p of channels whose smallest score and whose part of the total is given.
        thresholds: Scores above which channels are counted.

    Returns:
        Columns ``mean``, ``median``, ``lowest selected`` (the smallest score among the top p), ``max``, ``Gini``,
        ``held by top p`` and, as shares of all channels, ``> threshold``.
    """
    return pd.DataFrame({name: _concentration(values, ratio, thresholds) for name, values in scores.items()}).T


def _concentration(values: Tensor, ratio: float, thresholds: Sequence[float]) -> dict[str, float]:
    ascending = torch.from_numpy(np.sort(values.numpy()))
    n, k = values.numel(), ratio_count(values.numel(), ratio)
    above = n - torch.searchsorted(ascending, torch.tensor(thresholds), right=True)
    return {
        "mean": float(ascending.mean(dtype=torch.float64)),
        "median": float(ascending[(n - 1) // 2]),
        "lowest selected": float(ascending[n - k]) if k else float("nan"),
        "max": float(ascending[-1]),
        "Gini": gini(ascending),
        "held by top p": share_held(ascending, ratio),
        **{f"> {threshold:g}": int(count) / n for threshold, count in zip(thresholds, above, strict=True)},
    }
