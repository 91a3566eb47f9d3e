"""Random draws that depend on nothing but seed, source, tensor and position.

A draw is not the next number of a generator but a hash of where it stands, so that any part of a tensor can be drawn in
any order, on any process, on CPU and GPU alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from act_lightning.merging.bits import as_rows, at_least
from act_lightning.merging.method import TensorPlace

SMALLEST = 2.0**-31  # the smallest probability that is told from 0
_POSITIVE = 0x7FFFFFFF
_BLOCK = 1 << 16  # positions hashed together: their 256 KiB stay in the processor's cache
# triple32, a hash of 32 bits of very small bias: C. Wellons, https://nullprogram.com/blog/2018/07/31/
_STEPS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB), (14, 1))


def keeps(density: float, shape: torch.Size, place: TensorPlace, source: str, device: torch.device) -> Tensor:
    """Bernoulli draws, one for each element.

    Args:
        density: Probability of true, to 31 bits; at 0 and 1 nothing is left to chance.
        shape: Shape of the rows at ``place``.
        place: Seed, tensor and rows.
        source: Name of the source.
        device: Where to draw.

    Returns:
        A bit mask (int32) of that shape, −1 where the draw is true.

    >>> place = TensorPlace("lm_head.weight", seed=42)
    >>> keeps(0.5, torch.Size([2, 4]), place, "math", torch.device("cpu")).tolist()
    [[-1, -1, 0, -1], [-1, -1, 0, 0]]
    """
    found = torch.empty(shape, dtype=torch.int32, device=device)
    if density == 1:
        return found.fill_(-1)
    for block, bits in _blocks(shape, place, source, device):
        as_rows(found)[block] = at_least(bits.bitwise_and_(_POSITIVE), 2**31 - int(density * 2**31))
    return found


def uniform(shape: torch.Size, place: TensorPlace, source: str, device: torch.device) -> Tensor:
    """Uniform draws from the multiples of 2⁻²⁴ in [0, 1), float32; arguments as of :func:`keeps`."""
    found = torch.empty(shape, dtype=torch.float32, device=device)
    for block, bits in _blocks(shape, place, source, device):
        as_rows(found)[block] = (bits >> 8 & 0xFFFFFF).float() * 2**-24
    return found


def _blocks(shape: torch.Size, place: TensorPlace, source: str, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time, and 32 random bits for each of their elements: int32 ``[rows, elements of a row]``.

    The number of a row and that of a column are each hashed under a key of their own, which gives every row and every
    column its own number; what an element gets is the hash of their sum.
    """
    if shape.numel() == 0:
        return
    row_key, column_key = _keys(place, source)
    rows = torch.arange(shape[0], device=device) if place.rows is None else place.rows.to(device)
    columns = torch.arange(shape[1:].numel(), device=device)
    by_row = _hash_((rows + row_key).to(torch.int32)).unsqueeze(1)
    by_column = _hash_((columns + column_key).to(torch.int32))
    step = max(1, _BLOCK // len(columns))
    for first in range(0, len(rows), step):
        block = slice(first, first + step)
        yield block, _hash_(by_row[block] + by_column)


def _keys(place: TensorPlace, source: str) -> tuple[int, int]:
    """Two numbers of 32 bits for a tensor of a source."""
    digest = hashlib.sha256("\0".join([str(place.seed), source, place.name]).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def _hash_(values: Tensor) -> Tensor:
    """Each number of 32 bits (int32, changed in place) goes to another one, and no two to the same."""
    buffer = torch.empty_like(values)
    for shift, factor in _STEPS:
        torch.bitwise_right_shift(values, shift, out=buffer)
        buffer.bitwise_and_((1 << 32 - shift) - 1)  # torch shifts in copies of the sign
        values.bitwise_xor_(buffer)
        values.mul_(factor - (factor >> 31 << 32))
    return values
