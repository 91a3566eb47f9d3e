"""Exact matches differ at most in white space."""

from __future__ import annotations

import pytest

from act_lightning.evaluation.grading import exact_match


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
