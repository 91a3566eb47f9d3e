"""DARE with the sign election of TIES (https://arxiv.org/abs/2311.03099 and https://arxiv.org/abs/2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from act_lightning.merging.dare import DARE
from act_lightning.merging.method import TaskVector, TensorSlice
from act_lightning.merging.sparsify import sparsify, weighted
from act_lightning.merging.ties import sign_consensus


def dare_ties(
    vectors: Sequence[TaskVector], kept: Sequence[Tensor], factors: Sequence[float], average: bool = True
) -> Tensor:
    """The mean of w_m · factor_m · (b_m ⊙ δ_m) over the sources that agree with the sign of their sum.

    Args:
        vectors: One task vector a source, float32, all of one shape.
        kept: b_m ~ Bernoulli(density), a mask of that shape a source, bool or bits.
        factors: What makes up for the dropped elements.
        average: Whether to divide by Σ w_m of the agreeing sources, as TIES does; mergekit's ``dare_ties`` does not.

    Returns:
        float32, of that shape.
    """
    changes = [sparsify(*each) for each in zip(vectors, kept, factors, strict=True)]
    return sign_consensus(weighted(vectors, changes), [vector.weight for vector in vectors], average)


@dataclass(frozen=True)
class DARETIES(DARE):
    """DARE-TIES as a merging method: see :func:`dare_ties`. Density 0 changes nothing; at 1 nothing is dropped.

    Attributes:
        density: Probability with which an element stays, in [0, 1].
        rescale: As of :class:`~act_lightning.merging.dare.DARE`.
        average: Whether agreeing sources are averaged or, as in mergekit's ``dare_ties``, summed.
    """

    weighs_each = False

    average: bool = True

    def merge_rows(self, vectors: Sequence[TaskVector], place: TensorSlice, survey: list[float] | None) -> Tensor:
        """The elected mean of some rows of the thinned task vectors."""
        kept = [self.kept(vector, place) for vector in vectors]
        return dare_ties(vectors, kept, self.factors(vectors, survey), self.average)
