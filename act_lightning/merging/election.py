"""The election of signs: where task vectors disagree, the heavier side wins and the others step back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from act_lightning.merging.bits import masked


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
