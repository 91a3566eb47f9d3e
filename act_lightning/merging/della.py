"""DELLA: drop small changes more often than large ones, elect signs, fuse (Deep et al. 2024).

https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.merging.bits import as_rows
from act_lightning.merging.method import MergingMethod, TaskVector, TensorSlice
from act_lightning.merging.sparsify import (
    Rescale,
    l1,
    norm_factor,
    rescale_issues,
    share_issues,
    sparsify,
    uniform,
    weighted,
)
from act_lightning.merging.ties import sign_consensus


def keep_probabilities(vector: TaskVector, density: float, spread: float) -> Tensor:
    """With which probability each element stays: density − ε for a row's smallest |δ|, density + ε for its largest.

    In between it grows with the rank among the selected elements of the row; a vector is one row. An element that is
    selected alone in its row stays with probability ``density``.

    Args:
        vector: A task vector, float32 ``[rows, …]``.
        density: Mean probability.
        spread: ε.

    Returns:
        float32, of the shape of the task vector; without meaning where nothing is selected.

    >>> keep_probabilities(TaskVector(torch.tensor([[3.0, -1.0, 2.0]])), 0.5, 0.25).tolist()
    [[0.75, 0.25, 0.5]]
    """
    size = vector.delta.abs()
    if vector.mask is not None:
        size = torch.where(vector.mask, size, -1.0)
    size = size.unsqueeze(0) if size.ndim < 2 else as_rows(size)
    order = size.argsort(dim=1, stable=True)
    ranks = torch.empty_like(size).scatter_(
        1, order, torch.arange(size.shape[1], device=size.device).float().expand_as(size)
    )
    outside = (size < 0).sum(1, keepdim=True)
    among = size.shape[1] - 1 - outside
    share = torch.where(among > 0, (ranks - outside).clamp(min=0) / among.clamp(min=1), 0.5)
    return (density - spread + share * 2 * spread).view(vector.delta.shape)


def della(
    vectors: Sequence[TaskVector], kept: Sequence[Tensor], factors: Sequence[float | Tensor], average: bool = True
) -> Tensor:
    """The mean of w_m · factor_m · (b_m ⊙ δ_m) over the sources that agree with the sign of their sum.

    Args:
        vectors: One task vector a source, float32, all of one shape.
        kept: b_m ~ Bernoulli(:func:`keep_probabilities`), a mask of that shape a source, bool or bits.
        factors: What makes up for the dropped elements: one number a source, or one an element.
        average: Whether to divide by Σ w_m of the agreeing sources.

    Returns:
        float32, of that shape.
    """
    changes = [sparsify(*each) for each in zip(vectors, kept, factors, strict=True)]
    return sign_consensus(weighted(vectors, changes), [vector.weight for vector in vectors], average)


@dataclass(frozen=True)
class DELLA(MergingMethod):
    """DELLA as a merging method: see :func:`della`. Takes whole tensors, for it ranks the elements of a row.

    At density 0 everything is dropped and nothing changes; at 1 nothing is dropped; ``spread`` has no part in either.

    Attributes:
        density: Mean probability with which an element stays, in [0, 1].
        spread: ε; density ± ε must lie within (0, 1).
        rescale: ``density``: by 1 / its probability, as the paper; ``norm``: back to the tensor's ‖δ‖₁, as mergekit;
            ``none``.
        average: Whether agreeing sources are averaged or summed.
    """

    density: float = 0.5
    spread: float = 0.15
    rescale: Rescale = "density"
    average: bool = True

    def issues(self) -> list[ConfigIssue]:
        """Probabilities outside (0, 1), and an unknown way to rescale."""
        found = share_issues(self.density, "DELLA.density") + rescale_issues(self.rescale, "DELLA.rescale")
        most = min(self.density, 1 - self.density)
        if not found and most and not 0 <= self.spread < most:
            problem = f"must be at least 0 and below {most:g}, so that density ± spread lie in (0, 1)"
            found.append(ConfigIssue("DELLA.spread", self.spread, problem, "Choose a smaller spread."))
        return found

    def merge(self, vectors: Sequence[TaskVector], place: TensorSlice) -> Tensor:
        """The elected mean of the thinned task vectors of a whole tensor."""
        probabilities = [self._probabilities(vector) for vector in vectors]
        kept = [
            uniform(vector.delta.shape, place, vector.source, vector.delta.device) < probability
            for vector, probability in zip(vectors, probabilities, strict=True)
        ]
        return della(vectors, kept, self._factors(vectors, kept, probabilities), self.average)

    def _probabilities(self, vector: TaskVector) -> Tensor:
        if self.density in (0, 1):
            return torch.full_like(vector.delta, self.density)
        return keep_probabilities(vector, self.density, self.spread)

    def _factors(
        self, vectors: Sequence[TaskVector], kept: Sequence[Tensor], probabilities: Sequence[Tensor]
    ) -> Sequence[float | Tensor]:
        if self.rescale == "none" or self.density in (0, 1):
            return [1.0] * len(vectors)
        if self.rescale == "density":
            return [1 / probability for probability in probabilities]
        return [norm_factor(l1(vector), l1(vector, mask)) for vector, mask in zip(vectors, kept, strict=True)]
