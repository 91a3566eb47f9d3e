"""DARE: drop elements at random and rescale the rest (Yu et al. 2024, https://arxiv.org/abs/2311.03099).

DARE-TIES merges what is left by the sign consensus of TIES (https://arxiv.org/abs/2306.01708).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import get_args

from torch import Tensor

from act_lightning.merging.method import Parts, TaskVector, TensorSlice, TwoPassMethod
from act_lightning.merging.sparsify import SMALLEST_DENSITY, Rescale, bernoulli, norm_factors, sparsify
from act_lightning.merging.ties import sign_consensus


def dare(vectors: Sequence[TaskVector], masks: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """Σ_m λ_m · factor_m · (b_m ⊙ δ_m), summed in float32 in the order of the sources.

    With b_m ~ Bernoulli(density) and factor 1 / density, the expected change is that of task arithmetic.

    Args:
        vectors: One task vector per source, float32, all of one shape, which is that of the result.
        masks: b_m, a bool or bit mask of that shape per source.
        factors: What makes up for the dropped elements.

    >>> import torch
    >>> dare([TaskVector(torch.tensor([1.0, 2.0]), weight=0.5)], [torch.tensor([True, False])], [2.0]).tolist()
    [1.0, 0.0]
    """
    return reduce(add, map(sparsify, vectors, masks, factors))


def dare_ties(
    vectors: Sequence[TaskVector], masks: Sequence[Tensor], factors: Sequence[float], average: bool = True
) -> Tensor:
    """The mean of w_m · factor_m · (b_m ⊙ δ_m) over the sources that agree with the sign of their sum.

    Args:
        vectors: One task vector per source, float32, all of one shape, which is that of the result.
        masks: b_m ~ Bernoulli(density), a bool or bit mask of that shape per source.
        factors: What makes up for the dropped elements.
        average: Whether to divide by Σ w_m of the agreeing sources, as TIES does; mergekit's ``dare_ties`` does not.
    """
    products = list(map(sparsify, vectors, masks, factors))
    return sign_consensus(products, [vector.weight for vector in vectors], average)


@dataclass(frozen=True)
class DARE(TwoPassMethod):
    """DARE as a merging method: see :func:`dare`.

    The draw of an element depends on seed, source, tensor and position only. At density 0 everything is dropped and
    nothing changes; at 1 this is task arithmetic.

    Attributes:
        density: Probability that an element stays, in [0, 1]; the DARE paper drops nine tenths.
        rescale: ``density``: by 1 / density, as the paper; ``norm``: back to the tensor's ‖δ‖₁, as mergekit; ``none``.
    """

    per_source_scale = True
    shares = ("density",)
    choices = (("rescale", get_args(Rescale)),)

    density: float = 0.1
    rescale: Rescale = "density"

    @property
    def elementwise(self) -> bool:
        """Unless norms of the whole tensor are needed."""
        return self.rescale != "norm" or self.density == 1

    def first_pass(self, parts: Parts) -> list[float] | None:
        """For each source ‖δ‖₁ before / after dropping; ``None`` if the whole tensor has no influence."""
        if self.elementwise:
            return None
        return norm_factors((vectors, self.draw(vectors, tensor_slice)) for vectors, tensor_slice in parts())

    def draw(self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice) -> list[Tensor]:
        """Which elements of each task vector stay: a bit mask of its shape."""
        return [
            bernoulli(self.density, vector.delta.shape, tensor_slice, vector.source, vector.delta.device)
            for vector in vectors
        ]

    def factors(self, vectors: Sequence[TaskVector], statistics: list[float] | None) -> list[float]:
        """What makes up for the dropped elements of each source."""
        if statistics is not None:
            return statistics
        rescales = self.rescale == "density" and self.density >= SMALLEST_DENSITY
        return [1 / self.density if rescales else 1.0] * len(vectors)

    def merge_rows(
        self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice, statistics: list[float] | None
    ) -> Tensor:
        """The sum of some rows of the sparse task vectors."""
        return dare(vectors, self.draw(vectors, tensor_slice), self.factors(vectors, statistics))


@dataclass(frozen=True)
class DARETIES(DARE):
    """DARE-TIES as a merging method: see :func:`dare_ties`. Density 0 changes nothing; at 1 nothing is dropped.

    Attributes:
        density: Probability that an element stays, in [0, 1].
        rescale: As of :class:`DARE`.
        average: Whether agreeing sources are averaged or, as in mergekit's ``dare_ties``, summed.
    """

    per_source_scale = False

    average: bool = True

    def merge_rows(
        self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice, statistics: list[float] | None
    ) -> Tensor:
        """The sign consensus of some rows of the sparse task vectors."""
        masks = self.draw(vectors, tensor_slice)
        return dare_ties(vectors, masks, self.factors(vectors, statistics), self.average)
