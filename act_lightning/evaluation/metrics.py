"""Shares and means of an evaluation, summed over processes, each with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.grading import exact_match
from act_lightning.evaluation.intervals import bootstrap, wilson


class Share(Metric):
    """The share of cases that hold, with Wilson's interval.

    >>> metric = Share()
    >>> metric.update([True, False])
    >>> metric.compute(), [round(bound, 3) for bound in metric.interval()]
    (tensor(0.5000), [0.095, 0.905])

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

    def update(self, holds: Sequence[bool]) -> None:
        """Count a batch.

        Args:
            holds: Whether each case does.
        """
        self.correct += sum(holds)
        self.total += len(holds)

    def compute(self) -> Tensor:
        """Those that hold ÷ all, a float32 scalar; NaN when nothing was counted."""
        return self.correct.float() / self.total.float()

    def counts(self) -> tuple[int, int]:
        """Those that hold, and all, of all processes."""
        with self.sync_context():
            return int(self.correct), int(self.total)

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson(*self.counts())


class ExactMatch(Share):
    """The share of predictions that are their reference.

    >>> metric = ExactMatch()
    >>> metric.update(["47", "48"], ["47", "49"])
    >>> metric.compute()
    tensor(0.5000)
    """

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:  # type: ignore[override]
        """Count a batch.

        Args:
            predictions: The model's answers.
            references: The right answers, as many.

        Raises:
            ActError: There are more of one than of the other.
        """
        if len(predictions) != len(references):
            problem = f"must be as many as the {len(references)} references"
            raise ActError(ConfigIssue("predictions", len(predictions), problem, "Give one answer to each question."))
        super().update([exact_match(*pair) for pair in zip(predictions, references, strict=True)])


class Mean(Metric):
    """The mean of numbers, with a seeded bootstrap's interval.

    >>> metric = Mean()
    >>> metric.update([3, 5])
    >>> metric.compute()
    tensor(4.)

    Attributes:
        values: float32 ``[values]``, gathered from all processes.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, values: Sequence[float]) -> None:
        """Add numbers.

        Args:
            values: Any of them.
        """
        self.values.append(torch.tensor(values, dtype=torch.float32, device=self.device))

    def compute(self) -> Tensor:
        """Their mean, a float32 scalar; NaN of none."""
        return dim_zero_cat(self.values).mean()

    def interval(self) -> tuple[float, float]:
        """The bootstrap's 95 % interval of the mean, over the numbers of all processes."""
        with self.sync_context():
            return bootstrap(dim_zero_cat(self.values).cpu())
