"""What the methods that drop elements share: density, reproducible random draws, and rescaling."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from act_lightning.masks import ratio_count
from act_lightning.merging.method import TaskVector, TensorSlice, masked

Rescale = Literal["density", "norm", "none"]
SMALLEST_DENSITY = 2.0**-31  # smaller probabilities are drawn as 0
_SMALLEST_NORM = 1e-7  # below which mergekit does not divide
_BLOCK = 1 << 16  # positions hashed at a time: their 256 KiB stay in the processor's cache
# triple32, a 32-bit hash of very small bias: C. Wellons, https://nullprogram.com/blog/2018/07/31/
_HASH_ROUNDS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB), (14, 1))


def keep_count(selected: int, density: float) -> int:
    """How many of the selected elements of a tensor stay: ⌊n·density⌋, but at least one unless density is 0.

    >>> keep_count(1000, 0.2), keep_count(3, 0.2), keep_count(3, 0)
    (200, 1, 0)
    """
    return max(1, ratio_count(selected, density)) if density and selected else 0


def sparsify(vector: TaskVector, mask: Tensor, factor: float | Tensor = 1.0) -> Tensor:
    """The product w · factor · δ where ``mask`` and the task vector's own mask select, else 0; float32.

    Args:
        vector: A task vector with weight w.
        mask: The elements that stay, a bool or bit mask of its shape.
        factor: What makes up for the dropped elements, one number or one per element.
    """
    return masked(vector.restricted(), mask).mul_(factor).mul_(vector.weight)


def norm_factors(parts: Iterable[tuple[Sequence[TaskVector], Sequence[Tensor]]]) -> list[float]:
    """What restores ‖δ‖₁ of each source after elements were dropped; 1 if the norm is almost zero before or after.

    Args:
        parts: The task vectors of the sources and the masks of what stays, for each part of a tensor. Norms are over
            the selected elements, summed in float64.
    """
    before: list[float] = []
    after: list[float] = []
    for vectors, masks in parts:
        before, after = before or [0.0] * len(vectors), after or [0.0] * len(vectors)
        for i, (vector, mask) in enumerate(zip(vectors, masks, strict=True)):
            size = vector.restricted().abs()
            before[i] += float(size.sum(dtype=torch.float64))
            after[i] += float(masked(size, mask).sum(dtype=torch.float64))
    return [b / a if min(a, b) >= _SMALLEST_NORM else 1.0 for b, a in zip(before, after, strict=True)]


def at_least(numbers: Tensor, limit: int | Tensor) -> Tensor:
    """A bit mask of ``numbers`` ≥ ``limit``; both int32 and not negative.

    >>> at_least(torch.tensor([0, 5, 2**31 - 1], dtype=torch.int32), 5).tolist()
    [0, -1, -1]
    """
    return (limit - 1 - numbers).bitwise_right_shift_(31)


def as_rows(tensor: Tensor) -> Tensor:
    """A view ``[rows, elements of a row]`` of a tensor of any number of dimensions; it may be empty.

    >>> as_rows(torch.zeros(0, 2, 3)).shape
    torch.Size([0, 6])
    """
    return tensor.view(len(tensor), tensor.shape[1:].numel())


def bernoulli(
    density: float, shape: torch.Size, tensor_slice: TensorSlice, source: str, device: torch.device
) -> Tensor:
    """Bernoulli draws as a bit mask; each depends on seed, source, tensor and position only.

    Args:
        density: Probability that an element stays, to 31 bits; 0 and 1 are exact.
        shape: Shape of the rows of ``tensor_slice``, and of the result.
        tensor_slice: Seed, tensor and rows.
        source: Name of the source.
        device: Where to draw.

    >>> tensor_slice = TensorSlice("lm_head.weight", seed=42)
    >>> bernoulli(0.5, torch.Size([2, 4]), tensor_slice, "math", torch.device("cpu")).tolist()
    [[-1, -1, 0, -1], [-1, -1, 0, 0]]
    """
    mask = torch.empty(shape, dtype=torch.int32, device=device)
    if density == 1:
        return mask.fill_(-1)
    for block, bits in _random_bits(shape, tensor_slice, source, device):
        as_rows(mask)[block] = at_least(bits.bitwise_and_(0x7FFFFFFF), 2**31 - int(density * 2**31))
    return mask


def uniform(shape: torch.Size, tensor_slice: TensorSlice, source: str, device: torch.device) -> Tensor:
    """Uniform draws from the multiples of 2⁻²⁴ in [0, 1), float32; arguments as of :func:`bernoulli`."""
    draws = torch.empty(shape, dtype=torch.float32, device=device)
    for block, bits in _random_bits(shape, tensor_slice, source, device):
        as_rows(draws)[block] = (bits >> 8 & 0xFFFFFF).float() * 2**-24
    return draws


def _random_bits(
    shape: torch.Size, tensor_slice: TensorSlice, source: str, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time, with 32 random bits per element: int32 ``[rows, elements of a row]``.

    Row and column numbers are hashed under a key each, then an element gets the hash of the sum of both.
    """
    if shape.numel() == 0:
        return
    digest = hashlib.sha256("\0".join([str(tensor_slice.seed), source, tensor_slice.name]).encode()).digest()
    row_key, column_key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
    rows = tensor_slice.row_numbers(shape[0], device)
    columns = torch.arange(shape[1:].numel(), device=device)
    by_row = _hash_((rows + row_key).to(torch.int32)).unsqueeze(1)
    by_column = _hash_((columns + column_key).to(torch.int32))
    step = max(1, _BLOCK // len(columns))
    for first in range(0, len(rows), step):
        block = slice(first, first + step)
        yield block, _hash_(by_row[block] + by_column)


def _hash_(values: Tensor) -> Tensor:
    """Hash 32-bit numbers (int32) in place, one to one."""
    buffer = torch.empty_like(values)
    for shift, factor in _HASH_ROUNDS:
        torch.bitwise_right_shift(values, shift, out=buffer)
        buffer.bitwise_and_((1 << 32 - shift) - 1)  # torch's shift fills in copies of the sign bit
        values.bitwise_xor_(buffer)
        values.mul_(factor - (factor >> 31 << 32))
    return values
