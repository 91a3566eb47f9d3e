"""Whether an answer is the reference, and the share of answers that are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from act_lightning.errors import ActError, Fault


def exact_match(prediction: str, reference: str) -> bool:
    """Whether two answers are the same string, outer white space aside and inner runs of it taken as one space.

    >>> exact_match(" trois cent   un ", "trois cent un"), exact_match("47.", "47")
    (True, False)
    """
    return prediction.split() == reference.split()


class ExactMatch(Metric):
    """The share of predictions that are their reference.

    >>> metric = ExactMatch()
    >>> metric.update(["47", "48"], ["47", "49"])
    >>> metric.compute()
    tensor(0.5000)

    Attributes:
        correct: int64 scalar, summed over processes.
        total: int64 scalar, summed over processes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Count a batch.

        Args:
            predictions: The model's answers.
            references: The right answers, as many.

        Raises:
            ActError: There are more of one than of the other.
        """
        if len(predictions) != len(references):
            rule = f"must be as many as the {len(references)} references"
            raise ActError(Fault("predictions", len(predictions), rule, "Give one answer to each question."))
        self.correct += sum(map(exact_match, predictions, references))
        self.total += len(references)

    def compute(self) -> Tensor:
        """Correct ÷ total, a float32 scalar; NaN when nothing was counted."""
        return self.correct.float() / self.total.float()
