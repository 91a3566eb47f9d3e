"""The election of signs: where task vectors disagree, the heavier side wins and the others step back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.merging.bits import masked
from act_lightning.merging.magnitudes import Limit, largest
from act_lightning.merging.method import Parts, TaskVector, TensorSlice, TwoPassMethod
from act_lightning.merging.sparsify import kept_count, share_issues, sparsify


def sign_consensus(products: Sequence[Tensor], weights: Sequence[float], average: bool) -> Tensor:
    """Σ over the sources that agree with the elected sign of w_m δ_m, divided by their Σ w_m if ``average``.

    The sign of an element is that of Σ_m w_m δ_m, positive where the sum is zero; a source agrees where its own product
    has that sign (TIES §3.2, https://arxiv.org/abs/2306.01708). Where none agrees, or their weights cancel out, nothing
    is divided.

    Args:
        products: w_m δ_m of each source, float32, all of one shape.
        weights: w_m.
        average: Whether to divide.

    Returns:
        float32, of that shape.

    >>> sign_consensus([torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0])], [1.0, 1.0], average=True).tolist()
    [3.0, 1.5]
    """
    elected = reduce(add, products).view(torch.int32)
    against = ~elected
    merged, divisor = torch.zeros_like(products[0]), torch.zeros_like(products[0])
    for product, weight in zip(products, weights, strict=True):
        agrees = (product.view(torch.int32) ^ against).bitwise_right_shift_(31)  # −1 where the signs' bits are equal
        agreeing = masked(product, agrees)
        merged += agreeing
        if average:
            divisor.add_(agreeing.sign_(), alpha=weight)  # all with the elected sign, which is taken off below
    if not average:
        return merged
    if min(weights) < 0:
        divisor.mul_(torch.ones_like(divisor).copysign_(elected.view(torch.float32)))
    else:
        divisor.abs_()
    return merged.div_(divisor.add_(torch.eq(divisor, 0, out=torch.empty_like(divisor))))


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
    products = [sparsify(vector, mask, vector.weight) for vector, mask in zip(vectors, kept, strict=True)]
    return sign_consensus(products, [vector.weight for vector in vectors], average)


@dataclass(frozen=True)
class TIES(TwoPassMethod):
    """TIES as a merging method: see :func:`ties`.

    Of the n elements of a tensor that a source's mask selects, the max(1, ⌊n·density⌋) with the largest |δ| stay; of
    equal ones those at lower positions. At density 0 nothing stays and nothing changes; at 1 nothing is trimmed.

    Attributes:
        density: Share of the selected elements of each tensor that stays, in [0, 1]; the TIES paper keeps a fifth.
        average: Whether agreeing sources are averaged, as in the paper, or summed.
    """

    density: float = 0.2
    average: bool = True

    def issues(self) -> list[ConfigIssue]:
        """A density that is no share."""
        return share_issues(self.density, "TIES.density")

    def survey(self, parts: Parts) -> list[Limit] | None:
        """Where the largest magnitudes of each source end; ``None`` where nothing is trimmed."""
        if self.density == 1:
            return None
        return [limit for (limit,) in largest(parts, lambda selected: [kept_count(selected, self.density)])]

    def merge_rows(self, vectors: Sequence[TaskVector], place: TensorSlice, survey: list[Limit] | None) -> Tensor:
        """The elected mean of some rows."""
        if survey is None:
            kept = [torch.ones_like(vector.delta, dtype=torch.bool) for vector in vectors]
        else:
            kept = [limit.keeps(vector.delta, place) for limit, vector in zip(survey, vectors, strict=True)]
        return ties(vectors, kept, self.average)
