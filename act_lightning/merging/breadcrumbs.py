"""Model breadcrumbs: leave out the largest and the smallest changes (Davari and Belilovsky 2024).

https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.masks import ratio_count
from act_lightning.merging.magnitudes import Limit, largest
from act_lightning.merging.method import Parts, TaskVector, TensorSlice, TwoPassMethod
from act_lightning.merging.sparsify import kept_count, share_issues, sparsify, weighted


def breadcrumbs(vectors: Sequence[TaskVector], kept: Sequence[Tensor]) -> Tensor:
    """Σ_m λ_m · (b_m ⊙ δ_m), where b_m leaves out both ends of |δ_m|; summed in float32 in the order of the sources.

    Args:
        vectors: One task vector a source, float32, all of one shape.
        kept: b_m, a mask of that shape a source, bool or bits.

    Returns:
        float32, of that shape.
    """
    changes = [sparsify(vector, mask, 1.0) for vector, mask in zip(vectors, kept, strict=True)]
    return reduce(add, weighted(vectors, changes))


@dataclass(frozen=True)
class Breadcrumbs(TwoPassMethod):
    """Model breadcrumbs as a merging method: see :func:`breadcrumbs`.

    Of the n selected elements of a tensor the ⌊n·outliers⌋ with the largest |δ| are left out, and of the rest the
    max(1, ⌊n·density⌋) largest stay; where there are not so many left, fewer outliers are left out.

    Attributes:
        density: Share of the selected elements of each tensor that stays, in [0, 1]; at 0 nothing changes.
        outliers: Share of the largest to leave out (γ).
    """

    weighs_each = True

    density: float = 0.9
    outliers: float = 0.01

    def issues(self) -> list[ConfigIssue]:
        """What is no share."""
        return share_issues(self.density, "Breadcrumbs.density") + share_issues(self.outliers, "Breadcrumbs.outliers")

    def survey(self, parts: Parts) -> list[list[Limit]]:
        """For each source, where the outliers end, and where what stays ends."""
        return largest(parts, self._counts)

    def _counts(self, selected: int) -> tuple[int, int]:
        kept = kept_count(selected, self.density)
        left_out = min(ratio_count(selected, self.outliers), selected - kept)
        return left_out, left_out + kept

    def merge_rows(self, vectors: Sequence[TaskVector], place: TensorSlice, survey: list[list[Limit]]) -> Tensor:
        """The sum of some rows of the thinned task vectors."""
        kept = []
        for vector, (outliers, stays) in zip(vectors, survey, strict=True):
            kept.append(stays.keeps(vector.delta, place) & ~outliers.keeps(vector.delta, place))
        return breadcrumbs(vectors, kept)
