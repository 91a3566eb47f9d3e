"""Model breadcrumbs: drop the largest and the smallest changes (Davari and Belilovsky 2024).

https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

from act_lightning.masks import ratio_count
from act_lightning.merging.magnitudes import Threshold, top_k_thresholds
from act_lightning.merging.method import Parts, TaskVector, TensorSlice, TwoPassMethod
from act_lightning.merging.sparsify import keep_count, sparsify


def breadcrumbs(vectors: Sequence[TaskVector], masks: Sequence[Tensor]) -> Tensor:
    """Σ_m λ_m · (b_m ⊙ δ_m), where b_m drops both ends of |δ_m|; summed in float32 in the order of the sources.

    Args:
        vectors: One task vector per source, float32, all of one shape, which is that of the result.
        masks: b_m, a bool or bit mask of that shape per source.
    """
    return reduce(add, map(sparsify, vectors, masks))


@dataclass(frozen=True)
class Breadcrumbs(TwoPassMethod):
    """Model breadcrumbs as a merging method: see :func:`breadcrumbs`.

    Of the n selected elements of a tensor, the ⌊n·outliers⌋ with the largest |δ| are dropped, and the
    max(1, ⌊n·density⌋) largest of the rest stay. If fewer than that would be left, fewer outliers are dropped.

    Attributes:
        density: Share of the selected elements of each tensor that stays, in [0, 1]; at 0 nothing changes.
        outliers: Share of the largest elements to drop (γ).
    """

    per_source_scale = True
    shares = ("density", "outliers")

    density: float = 0.9
    outliers: float = 0.01

    def first_pass(self, parts: Parts) -> list[list[Threshold]]:
        """For each source, the thresholds of the outliers and of what stays."""

        def counts(selected: int) -> tuple[int, int]:
            stay = keep_count(selected, self.density)
            outliers = min(ratio_count(selected, self.outliers), selected - stay)
            return outliers, outliers + stay

        return top_k_thresholds(parts, counts)

    def merge_rows(
        self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice, statistics: list[list[Threshold]]
    ) -> Tensor:
        """The sum of some rows of the sparse task vectors."""
        masks = []
        for vector, (outliers, stay) in zip(vectors, statistics, strict=True):
            masks.append(stay.mask(vector.delta, tensor_slice) & ~outliers.mask(vector.delta, tensor_slice))
        return breadcrumbs(vectors, masks)
