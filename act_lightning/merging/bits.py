"""Masks as bits, for they cost a few percent of what bools cost: torch's loops over bools are not vectorized.

A bit mask is int32: −1, all bits set, where an element stays, and 0 where it goes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bit_mask(mask: Tensor) -> Tensor:
    """A bool mask as a bit mask; a bit mask as it is.

    >>> bit_mask(torch.tensor([True, False])).tolist()
    [-1, 0]
    """
    return mask.to(torch.int32).neg_() if mask.dtype == torch.bool else mask


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where the mask is set, else zero, whatever stands there, NaN too.

    Args:
        values: float32.
        mask: A bool or a bit mask, broadcastable to it.

    Returns:
        float32, of the shape of ``values``.

    >>> masked(torch.tensor([1.0, float("nan")]), torch.tensor([True, False])).tolist()
    [1.0, 0.0]
    """
    return (values.view(torch.int32) & bit_mask(mask)).view(torch.float32)


def at_least(numbers: Tensor, limit: int | Tensor) -> Tensor:
    """Where ``numbers`` ≥ ``limit``, as a bit mask; all of them int32 and not negative.

    >>> at_least(torch.tensor([0, 5, 2**31 - 1], dtype=torch.int32), 5).tolist()
    [0, -1, -1]
    """
    return (limit - 1 - numbers).bitwise_right_shift_(31)


def as_rows(tensor: Tensor) -> Tensor:
    """A view ``[rows, elements of a row]`` of a tensor of any number of dimensions, empty ones too.

    >>> as_rows(torch.zeros(0, 2, 3)).shape
    torch.Size([0, 6])
    """
    return tensor.view(len(tensor), tensor.shape[1:].numel())
