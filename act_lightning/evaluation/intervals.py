"""How far a measured share, mean or difference may lie from the true one."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue, raise_if_any


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share: ``(p̂ + z²/2n ± z √(p̂(1 - p̂)/n + z²/4n²)) / (1 + z²/n)``.

    Unlike ``p̂ ± z·σ`` it stays within [0, 1] and keeps its width where all or none are correct. (E. B. Wilson,
    "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.)

    >>> [round(bound, 3) for bound in wilson(0, 100)]
    [0.0, 0.037]

    Args:
        correct: How many were right.
        total: Of how many; the interval of none is (0, 1).
        confidence: The share of such intervals that hold the true value.

    Returns:
        Its lower and upper bound.

    Raises:
        ActError: ``correct`` is not between 0 and ``total``, or ``confidence`` not inside (0, 1).
    """
    _check(correct, total, confidence)
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, widening = correct / total, 1 + z * z / total
    center = (share + z * z / (2 * total)) / widening
    radius = z * sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / widening
    # at none and all the bound is exact, which rounding would miss
    return (max(0.0, center - radius) if correct else 0.0), (min(1.0, center + radius) if correct < total else 1.0)


def bootstrap(values: Tensor, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of a mean, from means of values drawn again with replacement.

    (B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7, 1979.)

    Args:
        values: float ``[values]``, in any order; the interval of none is (NaN, NaN).
        confidence: The share of such intervals that hold the true mean, for many values.
        resamples: How often is drawn.
        seed: Of the draws, which are the same for the same number of values.

    Returns:
        Its lower and upper bound.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    counted, means = values.double().sort().values, []  # processes and batches give them in orders of their own
    for _ in range(resamples):
        drawn = torch.randint(len(values), (len(values),), generator=generator)
        means.append(counted[drawn].mean())
    tail = (1 - confidence) / 2
    low, high = torch.quantile(torch.stack(means), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


Interval = tuple[float, float, float]
"""A value, and the lower and upper bound of its 95 % interval."""


def mean_of_shares(counts: Sequence[tuple[int, int]]) -> Interval:
    """The mean of independent shares, each counted alike, with its interval.

    Args:
        counts: How many were right, and of how many, for each share; at least one.
    """
    return mean_of([(correct / total, *wilson(correct, total)) for correct, total in counts])


def mean_of(parts: Sequence[Interval]) -> Interval:
    """The mean of independent numbers with an interval from theirs: ``√Σ(vᵢ - lᵢ)² / k`` below it, and so above.

    (G. Y. Zou, A. Donner, "Construction of confidence limits about effect measures", Stat. Med. 27, 2008.)

    >>> [round(bound, 3) for bound in mean_of([(0.5, 0.2, 0.9), (0.3, -0.1, 0.6)])]
    [0.4, 0.15, 0.65]

    Args:
        parts: At least one.
    """
    number = len(parts)
    below = sqrt(sum((value - low) ** 2 for value, low, _ in parts))
    above = sqrt(sum((high - value) ** 2 for value, _, high in parts))
    mean = sum(value for value, _, _ in parts) / number
    return mean, mean - below / number, mean + above / number


class McNemar(NamedTuple):
    """A paired comparison of two shares.

    Attributes:
        gained: Items that only the second got right.
        lost: Items that only the first got right.
        p_value: Probability of a split at least as uneven if both were equally good.
    """

    gained: int
    lost: int
    p_value: float


def mcnemar(gained: int, lost: int) -> McNemar:
    """McNemar's exact test: whether the items on which two models differ fall evenly, ``2·P(X ≤ min), X ~ B(n, ½)``.

    (Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12, 1947.)

    >>> mcnemar(gained=8, lost=1)
    McNemar(gained=8, lost=1, p_value=0.0390625)

    Args:
        gained: Items that only the second got right.
        lost: Items that only the first got right.
    """
    differing = gained + lost
    tail = sum(comb(differing, fewer) for fewer in range(min(gained, lost) + 1))
    return McNemar(gained, lost, min(1.0, 2 * tail / 2**differing))


def paired_difference(gained: int, lost: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a difference of two shares of the same items: ``(b - c)/n ± z √(b + c - (b - c)²/n)/n``.

    This is Wald's, after half an item more is put into each of the four cells of gained, lost, both and neither.
    (A. Agresti, Y. Min, "Simple improved confidence intervals for comparing matched proportions", Stat. Med. 24, 2005.)

    Args:
        gained: Items that only the second got right.
        lost: Items that only the first got right.
        total: All items.
        confidence: The share of such intervals that hold the true difference.

    Returns:
        Its lower and upper bound, within [-1, 1].
    """
    b, c, n = gained + 0.5, lost + 0.5, total + 2
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center, radius = (b - c) / n, z * sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, center - radius), min(1.0, center + radius)


def _check(correct: int, total: int, confidence: float) -> None:
    issues = []
    if not 0 <= correct <= total:
        issues.append(ConfigIssue("correct", correct, f"must lie in [0, {total}]", "Count right answers among all."))
    if not 0 < confidence < 1:
        issues.append(ConfigIssue("confidence", confidence, "must lie in (0, 1)", "Write a share such as 0.95."))
    raise_if_any(issues)
