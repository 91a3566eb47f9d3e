"""Confidence intervals of measured shares, means and differences, and a paired test."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, nan, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue, raise_if_any

Interval = tuple[float, float, float]
"""A value, and the lower and upper bound of its 95 % interval."""


class Share(NamedTuple):
    """A share of items, such as exact matches, as counts.

    >>> Share(1, 2).interval[0], Share(0, 0).text
    (0.5, '–')

    Attributes:
        correct: Items that count.
        total: All items.
    """

    correct: int
    total: int

    @property
    def interval(self) -> Interval:
        """The share with Wilson's 95 % interval; a share of nothing is NaN."""
        return (self.correct / self.total if self.total else nan, *wilson(self.correct, self.total))

    @property
    def text(self) -> str:
        """The share with its interval in %, such as ``50.0 (30–70)``."""
        return percent(self.interval) if self.total else "–"


def percent(interval: Interval) -> str:
    """A share and its bounds in %.

    >>> percent((0.5, 0.3, 0.7))
    '50.0 (30–70)'
    """
    value, low, high = interval
    return f"{100 * value:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share: ``(p̂ + z²/2n ± z √(p̂(1 - p̂)/n + z²/4n²)) / (1 + z²/n)``.

    Unlike ``p̂ ± z·σ`` it stays within [0, 1] and has a width even where all or none are correct. (E. B. Wilson,
    "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.)

    >>> [round(bound, 3) for bound in wilson(0, 100)]
    [0.0, 0.037]

    Returns:
        Lower and upper bound; (0, 1) for a share of nothing.

    Raises:
        ActError: ``correct`` is not between 0 and ``total``, or ``confidence`` not inside (0, 1).
    """
    issues = []
    if not 0 <= correct <= total:
        issues.append(ConfigIssue("correct", correct, f"must lie in [0, {total}]", "Count correct answers among all."))
    if not 0 < confidence < 1:
        issues.append(ConfigIssue("confidence", confidence, "must lie in (0, 1)", "Write a share such as 0.95."))
    raise_if_any(issues)
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, widening = correct / total, 1 + z * z / total
    center = (share + z * z / (2 * total)) / widening
    radius = z * sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / widening
    # for none and all the bound is exact, which rounding would miss
    return (max(0.0, center - radius) if correct else 0.0), (min(1.0, center + radius) if correct < total else 1.0)


def bootstrap(values: Tensor, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of a mean of float ``[values]``, from means of resamples drawn with replacement.

    (B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7, 1979.)

    The order of the values makes no difference, and draws are the same for the same number of values. Returns lower and
    upper bound; NaN without values.
    """
    if len(values) == 0:
        return nan, nan
    generator = torch.Generator().manual_seed(seed)
    ordered = values.double().sort().values  # so that the order of processes and batches makes no difference
    draws = (torch.randint(len(values), (len(values),), generator=generator) for _ in range(resamples))
    means = torch.stack([ordered[drawn].mean() for drawn in draws])
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def mean_of_shares(shares: Sequence[tuple[int, int]]) -> Interval:
    """The mean of at least one independent shares (correct, total), each with the same weight, with its interval."""
    return mean_of_intervals([(correct / total, *wilson(correct, total)) for correct, total in shares])


def mean_of_intervals(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent numbers, with an interval from theirs: ``√Σ(vᵢ - lᵢ)² / k`` below it, likewise above.

    (G. Y. Zou, A. Donner, "Construction of confidence limits about effect measures", Stat. Med. 27, 2008.)

    >>> [round(bound, 3) for bound in mean_of_intervals([(0.5, 0.2, 0.9), (0.3, -0.1, 0.6)])]
    [0.4, 0.15, 0.65]
    """
    number = len(intervals)
    below = sqrt(sum((value - low) ** 2 for value, low, _ in intervals))
    above = sqrt(sum((high - value) ** 2 for value, _, high in intervals))
    mean = sum(value for value, _, _ in intervals) / number
    return mean, mean - below / number, mean + above / number


class McNemar(NamedTuple):
    """A paired comparison of two shares.

    Attributes:
        gained: Items that only the second model answered correctly.
        lost: Items that only the first model answered correctly.
        p_value: Probability of a split at least as uneven if both were equally good.
    """

    gained: int
    lost: int
    p_value: float


def mcnemar(gained: int, lost: int) -> McNemar:
    """McNemar's exact test on the items where two models differ: ``2·P(X ≤ min), X ~ B(n, ½)``.

    (Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12, 1947.)

    >>> mcnemar(gained=8, lost=1)
    McNemar(gained=8, lost=1, p_value=0.0390625)
    """
    differing = gained + lost
    tail = sum(comb(differing, fewer) for fewer in range(min(gained, lost) + 1))
    return McNemar(gained, lost, min(1.0, 2 * tail / 2**differing))


def paired_test(before: Sequence[Any], after: Sequence[Any]) -> McNemar:
    """McNemar's test of two models on the same items: booleans, or the digits ``0`` and ``1``.

    >>> paired_test([True, False, False, False], [False, True, True, False]), paired_test("1000", "0110").gained
    (McNemar(gained=2, lost=1, p_value=1.0), 2)
    """
    gained = sum(new > old for old, new in zip(before, after, strict=True))
    return mcnemar(gained, sum(new < old for old, new in zip(before, after, strict=True)))


def paired_difference(gained: int, lost: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a difference of two shares of the same items: ``(b - c)/n ± z √(b + c - (b - c)²/n)/n``.

    Within [-1, 1]. This is Wald's interval after half an item is added to each of the four cells gained, lost, both and
    neither. (A. Agresti, Y. Min, "Simple improved confidence intervals for comparing matched proportions", Stat. Med.
    24, 2005.)
    """
    b, c, n = gained + 0.5, lost + 0.5, total + 2
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center, radius = (b - c) / n, z * sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, center - radius), min(1.0, center + radius)
