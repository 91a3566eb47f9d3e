"""TIES: trim, elect signs, merge what agrees (Yadav et al. 2023, https://arxiv.org/abs/2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from act_lightning.errors import Fault
from act_lightning.merging.density import kept_count, share_faults
from act_lightning.merging.dropping import thinned
from act_lightning.merging.election import elect
from act_lightning.merging.magnitudes import Limit, largest
from act_lightning.merging.method import Parts, SurveyingMethod, TaskVector, TensorPlace


def ties(vectors: Sequence[TaskVector], kept: Sequence[Tensor], average: bool = True) -> Tensor:
    """The mean of the trimmed task vectors that agree with the elected sign.

    τ_m = w_m · δ_m where m's k largest |δ_m| of the tensor are, else 0;   s = +1 where Σ_m τ_m ≥ 0, else −1;
    change = Σ τ_m / Σ w_m over the sources with sign(τ_m) = s, and 0 where there are none.

    Args:
        vectors: One task vector a source, float32, all of one shape.
        kept: A mask of that shape a source, bool or bits: what trimming leaves.
        average: Whether to divide by Σ w_m.

    Returns:
        float32, of that shape.
    """
    products = [thinned(vector, mask, vector.weight) for vector, mask in zip(vectors, kept, strict=True)]
    return elect(products, [vector.weight for vector in vectors], average)


@dataclass(frozen=True)
class TIES(SurveyingMethod):
    """TIES as a merging method: see :func:`ties`.

    Of the n elements of a tensor that a source's mask selects, the max(1, ⌊n·density⌋) with the largest |δ| stay; of
    equal ones those at lower positions. At density 0 nothing stays and nothing changes; at 1 nothing is trimmed.

    Attributes:
        density: Share of the selected elements of each tensor that stays, in [0, 1]; the TIES paper keeps a fifth.
        average: Whether agreeing sources are averaged, as in the paper, or summed.
    """

    density: float = 0.2
    average: bool = True

    def faults(self) -> list[Fault]:
        """A density that is no share."""
        return share_faults(self.density, "TIES.density")

    def survey(self, parts: Parts) -> list[Limit] | None:
        """Where the largest magnitudes of each source end; ``None`` where nothing is trimmed."""
        if self.density == 1:
            return None
        return [limit for (limit,) in largest(parts, lambda selected: [kept_count(selected, self.density)])]

    def merge_rows(self, vectors: Sequence[TaskVector], place: TensorPlace, survey: list[Limit] | None) -> Tensor:
        """The elected mean of some rows."""
        if survey is None:
            kept = [torch.ones_like(vector.delta, dtype=torch.bool) for vector in vectors]
        else:
            kept = [limit.keeps(vector.delta, place) for limit, vector in zip(survey, vectors, strict=True)]
        return ties(vectors, kept, self.average)
