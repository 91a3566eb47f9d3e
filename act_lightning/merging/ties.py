"""TIES: trim each task vector, vote on signs, and average those that agree (Yadav et al. 2023).

https://arxiv.org/abs/2306.01708
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from act_lightning.merging.magnitudes import Threshold, top_k_thresholds
from act_lightning.merging.method import Parts, TaskVector, TensorSlice, TwoPassMethod, masked
from act_lightning.merging.sparsify import keep_count, sparsify


def sign_consensus(products: Sequence[Tensor], weights: Sequence[float], average: bool) -> Tensor:
    """Σ w_m δ_m over the sources that agree with the majority sign, divided by their Σ w_m if ``average``.

    The majority sign of an element is that of Σ_m w_m δ_m, positive if the sum is zero; a source agrees if its own
    product has that sign (TIES §3.2). Where none agrees, or their weights cancel out, nothing is divided.

    Args:
        products: w_m δ_m of each source, float32, all of one shape, which is that of the result.
        weights: w_m.
        average: Whether to divide.

    >>> sign_consensus([torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0])], [1.0, 1.0], average=True).tolist()
    [3.0, 1.5]
    """
    majority = reduce(add, products).view(torch.int32)
    minority = ~majority
    merged, divisor = torch.zeros_like(products[0]), torch.zeros_like(products[0])
    for product, weight in zip(products, weights, strict=True):
        agrees = (product.view(torch.int32) ^ minority).bitwise_right_shift_(31)  # −1 where the sign bits are equal
        agreeing = masked(product, agrees)
        merged += agreeing
        if average:
            divisor.add_(agreeing.sign_(), alpha=weight)  # carries the majority sign, which is taken off below
    if not average:
        return merged
    if min(weights) < 0:
        divisor.mul_(torch.ones_like(divisor).copysign_(majority.view(torch.float32)))
    else:
        divisor.abs_()
    return merged.div_(divisor.add_(torch.eq(divisor, 0, out=torch.empty_like(divisor))))


def ties(vectors: Sequence[TaskVector], masks: Sequence[Tensor], average: bool = True) -> Tensor:
    """The mean of the trimmed task vectors that agree with the majority sign.

    τ_m = w_m · δ_m where m's k largest |δ_m| of the tensor are, else 0;   s = +1 where Σ_m τ_m ≥ 0, else −1;
    change = Σ τ_m / Σ w_m over the sources with sign(τ_m) = s, and 0 where there are none.

    Args:
        vectors: One task vector per source, float32, all of one shape, which is that of the result.
        masks: What trimming leaves, a bool or bit mask of that shape per source.
        average: Whether to divide by Σ w_m.
    """
    products = list(map(sparsify, vectors, masks))
    return sign_consensus(products, [vector.weight for vector in vectors], average)


@dataclass(frozen=True)
class TIES(TwoPassMethod):
    """TIES as a merging method: see :func:`ties`.

    Of the n elements of a tensor that a source's mask selects, the max(1, ⌊n·density⌋) with the largest |δ| stay; ties
    go to the lower position. At density 0 nothing stays and nothing changes; at 1 nothing is trimmed.

    Attributes:
        density: Share of the selected elements of each tensor that stays, in [0, 1]; the TIES paper keeps a fifth.
        average: Whether agreeing sources are averaged, as in the paper, or summed.
    """

    shares = ("density",)

    density: float = 0.2
    average: bool = True

    def first_pass(self, parts: Parts) -> list[list[Threshold]] | None:
        """The threshold of the largest magnitudes of each source; ``None`` if nothing is trimmed."""
        if self.density == 1:
            return None
        return top_k_thresholds(parts, lambda selected: [keep_count(selected, self.density)])

    def merge_rows(
        self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice, statistics: list[list[Threshold]] | None
    ) -> Tensor:
        """The sign consensus of some rows."""
        if statistics is None:
            masks = [torch.ones_like(vector.delta, dtype=torch.bool) for vector in vectors]
        else:
            masks = [
                threshold.mask(vector.delta, tensor_slice)
                for (threshold,), vector in zip(statistics, vectors, strict=True)
            ]
        return ties(vectors, masks, self.average)
