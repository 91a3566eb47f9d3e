from __future__ import annotations

import pytest
import torch

from act_lightning.errors import ActError
from act_lightning.evaluation.grading import exact_match
from act_lightning.evaluation.metrics import ExactMatch


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("47", "47", True),
        (" trois cent\n\tun ", "trois cent un", True),
        ("", " ", True),
        ("fünf", "Fünf", False),
        ("47.", "47", False),
        ("einundzwanzig", "ein und zwanzig", False),
        ("dieciséis", "dieciseis", False),
    ],
)
def test_exact_match(prediction: str, reference: str, same: bool) -> None:
    assert exact_match(prediction, reference) is same
    assert exact_match(reference, prediction) is same


def test_metric_counts_over_batches() -> None:
    metric = ExactMatch()
    metric.update(["a", "b"], ["a", "c"])
    metric.update(["d"], ["d"])
    assert (int(metric.correct), int(metric.total)) == (2, 3)
    assert metric.correct.dtype == metric.total.dtype == torch.int64
    assert torch.equal(metric.compute(), torch.tensor(2 / 3))
    metric.reset()
    metric.update(["a"], ["b"])
    assert torch.equal(metric.compute(), torch.tensor(0.0))


def test_metric_adds_up_over_processes() -> None:
    """Each state is gathered into a stack, to which its reduction is applied."""
    metric = ExactMatch()
    assert all(int(reduce(torch.tensor([2, 3]))) == 5 for reduce in metric._reductions.values())  # type: ignore[misc, operator]


def test_nothing_counted_is_not_a_number() -> None:
    metric = ExactMatch()
    metric.update([], [])
    assert metric.compute().isnan()


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ActError, match=r"predictions = 1.*2 references"):
        ExactMatch().update(["a"], ["a", "b"])
