from __future__ import annotations

from math import comb, isnan

import numpy as np
import pytest
import torch
from scipy import stats

from act_lightning.errors import ActError
from act_lightning.evaluation.intervals import bootstrap, mcnemar, mean_of_shares, paired_difference, wilson


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
    assert all(wilson(total, total)[1] == 1.0 for total in range(1, 500))
    assert all(wilson(0, total)[0] == 0.0 for total in range(1, 500))


@pytest.mark.parametrize(
    ("correct", "total", "confidence", "setting"),
    [(-1, 5, 0.95, "correct"), (6, 5, 0.95, "correct"), (1, 5, 1.0, "confidence"), (1, 5, 0.0, "confidence")],
)
def test_refused(correct: int, total: int, confidence: float, setting: str) -> None:
    with pytest.raises(ActError, match=setting):
        wilson(correct, total, confidence)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 9), (40, 61)])
def test_mcnemar_is_the_sign_test(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost).p_value == pytest.approx(expected)
    assert mcnemar(lost, gained).p_value == mcnemar(gained, lost).p_value


@pytest.mark.parametrize(("gained", "lost", "total"), [(150, 86, 1600), (0, 7, 30), (0, 0, 20)])
def test_paired_difference_is_the_interval_of_a_mean_of_signs(gained: int, lost: int, total: int) -> None:
    """Of +1, -1 and 0, after half an item more in each of the four cells."""
    signs = np.repeat([1.0, -1.0, 0.0], [2 * gained + 1, 2 * lost + 1, 2 * (total - gained - lost) + 2])
    error = 1.959964 * signs.std() / np.sqrt(total + 2)
    assert paired_difference(gained, lost, total) == pytest.approx((signs.mean() - error, signs.mean() + error))


def test_bootstrap_of_many_values_is_the_normal_interval() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(1))
    low, high = bootstrap(values)
    error = float(values.std()) / 20
    assert (low, high) == pytest.approx(
        (float(values.mean()) - 1.96 * error, float(values.mean()) + 1.96 * error), abs=0.02
    )
    assert bootstrap(values) == (low, high), "seeded"
    assert bootstrap(values.flip(0)) == (low, high), "processes and batches have orders of their own"
    assert all(isnan(bound) for bound in bootstrap(torch.tensor([])))


def test_mean_of_one_share_is_the_share() -> None:
    assert mean_of_shares([(30, 120)]) == pytest.approx((0.25, *wilson(30, 120)))


def test_mean_of_shares_covers_the_true_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, covered = torch.tensor([0.1, 0.3, 0.8]), 0
    for _ in range(300):
        counts = torch.binomial(torch.full((3,), 100.0), truth, generator=generator).int().tolist()
        _, low, high = mean_of_shares([(count, 100) for count in counts])
        covered += low <= 0.4 <= high
    assert covered / 300 == pytest.approx(0.95, abs=0.04)
