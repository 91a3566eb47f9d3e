"""DELLA: drop small changes more often than large ones, then merge by sign consensus (Deep et al. 2024).

https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.merging.method import MergingMethod, TaskVector, TensorSlice
from act_lightning.merging.sparsify import Rescale, as_rows, norm_factors, sparsify, uniform
from act_lightning.merging.ties import sign_consensus


def keep_probabilities(vector: TaskVector, density: float, spread: float) -> Tensor:
    """The probability that each element stays: density − ε for a row's smallest |δ|, density + ε for its largest.

    In between it grows with the rank among the selected elements of the row; a vector is one row. The only selected
    element of a row stays with probability ``density``.

    Args:
        vector: A task vector, float32 ``[rows, …]``.
        density: Mean probability.
        spread: ε.

    Returns:
        float32, of the shape of the task vector; meaningless where nothing is selected.

    >>> keep_probabilities(TaskVector(torch.tensor([[3.0, -1.0, 2.0]])), 0.5, 0.25).tolist()
    [[0.75, 0.25, 0.5]]
    """
    size = vector.delta.abs()
    if vector.mask is not None:
        size = torch.where(vector.mask, size, -1.0)
    size = size.unsqueeze(0) if size.ndim < 2 else as_rows(size)
    order = size.argsort(dim=1, stable=True)
    positions = torch.arange(size.shape[1], device=size.device).float().expand_as(size)
    ranks = torch.empty_like(size).scatter_(1, order, positions)
    unselected = (size < 0).sum(1, keepdim=True)
    highest = size.shape[1] - 1 - unselected
    share = torch.where(highest > 0, (ranks - unselected).clamp(min=0) / highest.clamp(min=1), 0.5)
    return (density - spread + share * 2 * spread).view(vector.delta.shape)


def della(
    vectors: Sequence[TaskVector], masks: Sequence[Tensor], factors: Sequence[float | Tensor], average: bool = True
) -> Tensor:
    """The mean of w_m · factor_m · (b_m ⊙ δ_m) over the sources that agree with the sign of their sum.

    Args:
        vectors: One task vector per source, float32, all of one shape, which is that of the result.
        masks: b_m ~ Bernoulli(:func:`keep_probabilities`), a bool or bit mask of that shape per source.
        factors: What makes up for the dropped elements: one number per source, or one per element.
        average: Whether to divide by Σ w_m of the agreeing sources.
    """
    products = list(map(sparsify, vectors, masks, factors))
    return sign_consensus(products, [vector.weight for vector in vectors], average)


@dataclass(frozen=True)
class DELLA(MergingMethod):
    """DELLA as a merging method: see :func:`della`. It needs whole tensors, since it ranks the elements of a row.

    At density 0 everything is dropped and nothing changes; at 1 nothing is dropped. ``spread`` is unused in both cases.

    Attributes:
        density: Mean probability that an element stays, in [0, 1].
        spread: ε; density ± ε must lie within (0, 1).
        rescale: ``density``: by 1 / its probability, as the paper; ``norm``: back to the tensor's ‖δ‖₁, as mergekit;
            ``none``.
        average: Whether agreeing sources are averaged or summed.
    """

    shares = ("density",)
    choices = (("rescale", get_args(Rescale)),)

    density: float = 0.5
    spread: float = 0.15
    rescale: Rescale = "density"
    average: bool = True

    def issues(self) -> list[ConfigIssue]:
        """Probabilities outside (0, 1), and an unknown way to rescale."""
        issues = super().issues()
        limit = min(self.density, 1 - self.density)
        if not issues and limit and not 0 <= self.spread < limit:
            problem = f"must be at least 0 and below {limit:g}, so that density ± spread lie in (0, 1)"
            issues.append(ConfigIssue("DELLA.spread", self.spread, problem, "Choose a smaller spread."))
        return issues

    def merge(self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice) -> Tensor:
        """The sign consensus of the sparse task vectors of a whole tensor."""
        masks: list[Tensor] = []
        factors: list[float | Tensor] = []
        for vector in vectors:
            delta = vector.delta
            if self.density in (0, 1):
                probabilities = torch.full_like(delta, self.density)
            else:
                probabilities = keep_probabilities(vector, self.density, self.spread)
            masks.append(uniform(delta.shape, tensor_slice, vector.source, delta.device) < probabilities)
            if self.rescale == "none" or self.density in (0, 1):
                factors.append(1.0)
            elif self.rescale == "density":
                factors.append(1 / probabilities)
            else:
                factors += norm_factors([([vector], masks[-1:])])
        return della(vectors, masks, factors, self.average)
