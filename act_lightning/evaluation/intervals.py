"""How far a measured share may lie from the true one."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from act_lightning.errors import Fault, refuse


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
    return max(0.0, center - radius), min(1.0, center + radius)


def _check(correct: int, total: int, confidence: float) -> None:
    faults = []
    if not 0 <= correct <= total:
        faults.append(Fault("correct", correct, f"must lie in [0, {total}]", "Count right answers among all."))
    if not 0 < confidence < 1:
        faults.append(Fault("confidence", confidence, "must lie in (0, 1)", "Write a share such as 0.95."))
    refuse(faults)
