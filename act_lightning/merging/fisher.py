"""Fisher-weighted averaging, diagonal (Matena and Raffel 2022, https://arxiv.org/abs/2111.09832)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.merging.method import MergingMethod, TaskVector, TensorSlice


def fisher(vectors: Sequence[TaskVector], target_importance: Tensor, target_weight: float = 1.0) -> Tensor:
    """Σ_m w_m F_m δ_m / (w_0 F_trg + Σ_m w_m F_m), the sums over the sources whose mask selects the element.

    Without masks θ_trg plus this change is the average of all models, each weighted by its Fisher information (equation
    4 of the paper). Where no model has any, nothing changes.

    Args:
        vectors: One task vector a source, float32, all of one shape, with F_m as ``importance`` and w_m ≥ 0.
        target_importance: F_trg, float32 of that shape.
        target_weight: w_0 ≥ 0.

    Returns:
        float32, of that shape.

    >>> one = TaskVector(torch.tensor([1.0, 1.0]), importance=torch.tensor([3.0, 0.0]))
    >>> fisher([one], torch.tensor([1.0, 0.0])).tolist()
    [0.75, 0.0]
    """
    shares = [_selected_importance(vector) * vector.weight for vector in vectors]
    total = target_importance * target_weight
    for share in shares:
        total = total + share
    total.masked_fill_(total == 0, 1)
    change = torch.zeros_like(total)
    for vector, share in zip(vectors, shares, strict=True):
        change += share / total * vector.restricted()  # a share first: the product of small numbers could vanish
    return change


def _selected_importance(vector: TaskVector) -> Tensor:
    if vector.importance is None:
        raise TypeError(f"the task vector of {vector.source!r} carries no Fisher information")
    return vector.importance if vector.mask is None else torch.where(vector.mask, vector.importance, 0.0)


@dataclass(frozen=True)
class Fisher(MergingMethod):
    """Fisher-weighted averaging as a merging method: see :func:`fisher`.

    Attributes:
        target_weight: w_0, how much the target's own information counts; 0: not at all.
    """

    elementwise = True
    needs_importance = True
    negative_weights = False

    target_weight: float = 1.0

    def issues(self) -> list[ConfigIssue]:
        """A negative weight."""
        if not isinstance(self.target_weight, bool) and 0 <= self.target_weight < float("inf"):
            return []
        problem = "must be a number that is not negative"
        return [
            ConfigIssue("Fisher.target_weight", self.target_weight, problem, "Write 1, or 0 to average sources only.")
        ]

    def merge(self, vectors: Sequence[TaskVector], place: TensorSlice) -> Tensor:
        """The weighted average, as a change of the target."""
        if place.importance is None:
            raise TypeError(f"the place of {place.name!r} carries no Fisher information of the target")
        return fisher(vectors, place.importance, self.target_weight)
