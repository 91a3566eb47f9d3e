"""The election of signs: where task vectors disagree, the heavier side wins and the others step back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor


def elect(products: Sequence[Tensor], weights: Sequence[float], average: bool) -> Tensor:
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

    >>> elect([torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0])], [1.0, 1.0], average=True).tolist()
    [3.0, 1.5]
    """
    positive = reduce(add, products) >= 0
    merged, divisor = torch.zeros_like(products[0]), torch.zeros_like(products[0])
    for product, weight in zip(products, weights, strict=True):
        agrees = torch.where(positive, product > 0, product < 0)
        merged += torch.where(agrees, product, 0.0)
        if average:
            divisor += agrees * weight
    return merged.div_(divisor.masked_fill_(divisor == 0, 1)) if average else merged
