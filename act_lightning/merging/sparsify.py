"""What methods share that drop elements: density, reproducible draws, and the factor that makes up for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.masks import ratio_count
from act_lightning.merging.bits import as_rows, at_least, masked
from act_lightning.merging.method import Parts, TaskVector, TensorSlice


def share_issues(value: float, setting: str) -> list[ConfigIssue]:
    """What is wrong with a share of elements: it must be a number in [0, 1].

    >>> [str(issue) for issue in share_issues(2, "TIES.density")]
    ['TIES.density = 2: must lie in [0, 1]. Write the share to keep, such as 0.2.']
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return [ConfigIssue(setting, value, "must lie in [0, 1]", "Write the share to keep, such as 0.2.")]
    return []


def kept_count(selected: int, density: float) -> int:
    """How many of the selected elements of a tensor are kept: ⌊n·density⌋, but one at least unless density is 0.

    >>> kept_count(1000, 0.2), kept_count(3, 0.2), kept_count(3, 0)
    (200, 1, 0)
    """
    return max(1, ratio_count(selected, density)) if density and selected else 0


SMALLEST = 2.0**-31  # the smallest probability that is told from 0
_POSITIVE = 0x7FFFFFFF
_BLOCK = 1 << 16  # positions hashed together: their 256 KiB stay in the processor's cache
# triple32, a hash of 32 bits of very small bias: C. Wellons, https://nullprogram.com/blog/2018/07/31/
_STEPS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB), (14, 1))


def keeps(density: float, shape: torch.Size, place: TensorSlice, source: str, device: torch.device) -> Tensor:
    """Bernoulli draws, one for each element.

    Args:
        density: Probability of true, to 31 bits; at 0 and 1 nothing is left to chance.
        shape: Shape of the rows at ``place``.
        place: Seed, tensor and rows.
        source: Name of the source.
        device: Where to draw.

    Returns:
        A bit mask (int32) of that shape, −1 where the draw is true.

    >>> place = TensorSlice("lm_head.weight", seed=42)
    >>> keeps(0.5, torch.Size([2, 4]), place, "math", torch.device("cpu")).tolist()
    [[-1, -1, 0, -1], [-1, -1, 0, 0]]
    """
    found = torch.empty(shape, dtype=torch.int32, device=device)
    if density == 1:
        return found.fill_(-1)
    for block, bits in _blocks(shape, place, source, device):
        as_rows(found)[block] = at_least(bits.bitwise_and_(_POSITIVE), 2**31 - int(density * 2**31))
    return found


def uniform(shape: torch.Size, place: TensorSlice, source: str, device: torch.device) -> Tensor:
    """Uniform draws from the multiples of 2⁻²⁴ in [0, 1), float32; arguments as of :func:`keeps`."""
    found = torch.empty(shape, dtype=torch.float32, device=device)
    for block, bits in _blocks(shape, place, source, device):
        as_rows(found)[block] = (bits >> 8 & 0xFFFFFF).float() * 2**-24
    return found


def _blocks(shape: torch.Size, place: TensorSlice, source: str, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
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


def _keys(place: TensorSlice, source: str) -> tuple[int, int]:
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


Rescale = Literal["density", "norm", "none"]
_SMALLEST_NORM = 1e-7  # below which mergekit does not divide


def rescale_issues(rescale: str, setting: str) -> list[ConfigIssue]:
    """What is wrong with the way of rescaling."""
    if rescale not in get_args(Rescale):
        return [ConfigIssue(setting, rescale, f"must be one of {', '.join(get_args(Rescale))}", "Choose one of these.")]
    return []


def l1(vector: TaskVector, kept: Tensor | None = None) -> float:
    """‖δ‖₁ over the selected elements, or over those of them that are ``kept``, summed in float64."""
    size = vector.restricted().abs()
    return float((size if kept is None else masked(size, kept)).sum(dtype=torch.float64))


def norm_factor(before: float, after: float) -> float:
    """What brings a norm back to what it was; 1 where one of them is almost zero."""
    return before / after if min(before, after) >= _SMALLEST_NORM else 1.0


def norm_factors(parts: Parts, keep: Callable[[TaskVector, TensorSlice], Tensor]) -> list[float]:
    """For each source ‖δ‖₁ / ‖δ kept‖₁ over the selected elements of a whole tensor.

    Args:
        parts: Goes through the parts of the tensor.
        keep: The elements of a task vector that stay, as a mask.
    """
    totals: list[list[float]] = []
    for vectors, place in parts():
        totals = totals or [[0.0, 0.0] for _ in vectors]
        for total, vector in zip(totals, vectors, strict=True):
            total[0] += l1(vector)
            total[1] += l1(vector, keep(vector, place))
    return [norm_factor(before, after) for before, after in totals]


def sparsify(vector: TaskVector, kept: Tensor, factor: float | Tensor) -> Tensor:
    """Factor · δ where it is kept and selected, else 0; float32, of the shape of δ.

    Args:
        vector: A task vector.
        kept: A bool or bit mask, of its shape.
        factor: What makes up for the dropped elements; a tensor of that shape where it differs.
    """
    return masked(vector.restricted(), kept).mul_(factor)


def weighted(vectors: Sequence[TaskVector], changes: Sequence[Tensor]) -> list[Tensor]:
    """Each change times its source's weight, rounded to float32."""
    return [change * vector.weight for vector, change in zip(vectors, changes, strict=True)]
