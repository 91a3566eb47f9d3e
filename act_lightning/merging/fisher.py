"""Fisher-weighted averaging, diagonal (Matena and Raffel 2022, https://arxiv.org/abs/2111.09832)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.merging.method import MergingMethod, TaskVector, TensorSlice


def fisher(vectors: Sequence[TaskVector], target_fisher: Tensor, target_weight: float = 1.0) -> Tensor:
    """Σ_m w_m F_m δ_m / (w_0 F_trg + Σ_m w_m F_m), summed over the sources whose mask selects the element.

    Without masks θ_trg plus this change is the average of all models, each weighted by its Fisher information (equation
    4 of the paper). Where all of it is zero, nothing changes.

    Args:
        vectors: One task vector per source, float32, all of one shape, with F_m as ``fisher`` and w_m ≥ 0.
        target_fisher: F_trg, float32 of that shape, as the result.
        target_weight: w_0 ≥ 0.

    >>> vector = TaskVector(torch.tensor([1.0, 1.0]), fisher=torch.tensor([3.0, 0.0]))
    >>> fisher([vector], torch.tensor([1.0, 0.0])).tolist()
    [0.75, 0.0]
    """
    weighted = []
    total = target_fisher * target_weight
    for vector in vectors:
        if vector.fisher is None:
            raise TypeError(f"the task vector of {vector.source!r} carries no Fisher information")
        selected = vector.fisher if vector.mask is None else torch.where(vector.mask, vector.fisher, 0.0)
        weighted.append(selected * vector.weight)
        total = total + weighted[-1]
    total.masked_fill_(total == 0, 1)
    change = torch.zeros_like(total)
    for vector, weight in zip(vectors, weighted, strict=True):
        change += weight / total * vector.restricted()  # divide first: the product of small numbers could vanish
    return change


@dataclass(frozen=True)
class Fisher(MergingMethod):
    """Fisher-weighted averaging as a merging method: see :func:`fisher`.

    Attributes:
        target_weight: w_0, how much the target's own information counts; 0: not at all.
    """

    elementwise = True
    needs_fisher = True
    negative_weights = False

    target_weight: float = 1.0

    def issues(self) -> list[ConfigIssue]:
        """A negative weight."""
        if not isinstance(self.target_weight, bool) and 0 <= self.target_weight < float("inf"):
            return []
        hint = "Write 1, or 0 to average sources only."
        return [ConfigIssue("Fisher.target_weight", self.target_weight, "must be a number that is not negative", hint)]

    def merge(self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice) -> Tensor:
        """The weighted average, as a change of the target."""
        if tensor_slice.fisher is None:
            raise TypeError(f"the slice of {tensor_slice.name!r} carries no Fisher information of the target")
        return fisher(vectors, tensor_slice.fisher, self.target_weight)
