from __future__ import annotations

from math import comb

import pytest

from act_lightning.errors import ActError
from act_lightning.evaluation import wilson


@pytest.mark.parametrize(
    ("correct", "total", "expected"),
    [
        # R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17 (1998), table I
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_published_values(correct: int, total: int, expected: tuple[float, float]) -> None:
    assert wilson(correct, total) == pytest.approx(expected, abs=5e-5)


def test_bounds_solve_the_score_equation() -> None:
    """At both bounds the observed share lies exactly z standard errors from the bound."""
    for bound in wilson(30, 120, confidence=0.9):
        assert abs(30 / 120 - bound) / (bound * (1 - bound) / 120) ** 0.5 == pytest.approx(1.6448536)


def test_covers_the_true_share_about_as_often_as_it_says() -> None:
    share, total = 0.3, 200
    covered = 0.0
    for correct in range(total + 1):
        low, high = wilson(correct, total)
        if low <= share <= high:
            covered += comb(total, correct) * share**correct * (1 - share) ** (total - correct)
    assert covered == pytest.approx(0.95, abs=0.015)


def test_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0


@pytest.mark.parametrize(
    ("correct", "total", "confidence", "setting"),
    [(-1, 5, 0.95, "correct"), (6, 5, 0.95, "correct"), (1, 5, 1.0, "confidence"), (1, 5, 0.0, "confidence")],
)
def test_refused(correct: int, total: int, confidence: float, setting: str) -> None:
    with pytest.raises(ActError, match=setting):
        wilson(correct, total, confidence)
