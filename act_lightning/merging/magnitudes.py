"""The largest magnitudes of a tensor that is seen in parts: an exact selection by counting bit patterns.

For float32 numbers that are not negative, the order of their bit patterns is the order of the numbers. The upper halves
of the patterns are counted first, then the lower halves of those that share the upper half with the limit: two passes,
and a third where only some of the elements that equal the limit are kept. Nothing is sorted or held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from act_lightning.merging.bits import as_rows, at_least
from act_lightning.merging.method import Parts, TaskVector, TensorSlice

_MAGNITUDE = 0x7FFFFFFF
_HALF = 16
_NOTHING = _MAGNITUDE  # no number has a larger pattern


@dataclass(frozen=True)
class Limit:
    """Where the k largest magnitudes end.

    Attributes:
        bits: Bit pattern of the smallest magnitude that is kept.
        last: Row and column of the last element of just that magnitude that is kept, for those at lower positions go
            first; ``None``: all of them are kept.
    """

    bits: int
    last: tuple[int, int] | None = None

    def keeps(self, delta: Tensor, place: TensorSlice) -> Tensor:
        """Which elements are among the k largest.

        Args:
            delta: float32 ``[rows, …]``, contiguous.
            place: Which rows these are.

        Returns:
            A bit mask (int32), of the shape of ``delta``.
        """
        found = as_rows(magnitude_bits(delta))
        if self.last is None:
            return at_least(found, self.bits).view(delta.shape)
        row, column = self.last
        rows = row_numbers(place, delta)
        kept = at_least(found, torch.where(rows <= row, self.bits, self.bits + 1).to(torch.int32).unsqueeze(1))
        kept[rows == row, column + 1 :] = at_least(found[rows == row, column + 1 :], self.bits + 1)
        return kept.view(delta.shape)


def magnitude_bits(delta: Tensor) -> Tensor:
    """The bit pattern of |δ|, int32, of the shape of ``delta`` (float32)."""
    return delta.contiguous().view(torch.int32) & _MAGNITUDE


def row_numbers(place: TensorSlice, delta: Tensor) -> Tensor:
    """The number in the whole tensor of each row of ``delta``, int64 ``[rows]``."""
    return torch.arange(len(delta), device=delta.device) if place.rows is None else place.rows.to(delta.device)


def largest(parts: Parts, counts: Callable[[int], Sequence[int]]) -> list[list[Limit]]:
    """The limits of the k largest |δ| among the selected elements of a tensor, for every source and every k.

    Args:
        parts: Goes through the parts of the tensor.
        counts: From the number of selected elements of a source to the k that are asked for.

    Returns:
        For each source one limit for each k.
    """
    upper, selected = _count_upper(parts)
    ks = [counts(number) for number in selected]
    coarse = [[_descend(counted, k) for k in its] for counted, its in zip(upper, ks, strict=True)]
    lower = _count_lower(parts, [[bucket for bucket, _ in its] for its in coarse])
    fine = [
        [_join(*its, counted) for its, counted in zip(source, counts_of_source, strict=True)]
        for source, counts_of_source in zip(coarse, lower, strict=True)
    ]
    return _place_ties(parts, fine)


def selected_count(vector: TaskVector) -> int:
    """How many elements of a task vector its mask selects."""
    if vector.mask is None:
        return vector.delta.numel()
    return int(vector.mask.sum()) * (vector.delta.numel() // max(1, vector.mask.numel()))


def _count_upper(parts: Parts) -> tuple[list[Tensor], list[int]]:
    """How often each upper half occurs in each source, and how many elements of each are selected.

    What no mask selects counts as zeros, which are the last to be kept and change nothing.
    """
    counted: list[Tensor] = []
    selected: list[int] = []
    for vectors, _ in parts():
        if not counted:
            counted = [torch.zeros(1 << _HALF - 1, dtype=torch.int64, device=one.delta.device) for one in vectors]
            selected = [0] * len(vectors)
        for i, vector in enumerate(vectors):
            bits = magnitude_bits(vector.restricted()).flatten()
            counted[i] += torch.bincount(bits >> _HALF, minlength=1 << _HALF - 1)
            selected[i] += selected_count(vector)
    return counted, selected


def _count_lower(parts: Parts, buckets: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    """For each source and each upper half in question, how often each lower half occurs with it."""
    counted = [[torch.zeros((), dtype=torch.int64) for _ in its] for its in buckets]
    for vectors, _ in parts():
        for its, its_buckets, vector in zip(counted, buckets, vectors, strict=True):
            bits = magnitude_bits(vector.restricted()).flatten()
            for i, bucket in enumerate(its_buckets):
                low = bits[bits >> _HALF == bucket] & (1 << _HALF) - 1
                its[i] = its[i] + torch.bincount(low, minlength=1 << _HALF)
    return counted


def _descend(counted: Tensor, k: int) -> tuple[int, int]:
    """The bucket in which the k-th largest lies, and how many of that bucket are among the k largest."""
    from_top = counted.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k))
    return len(counted) - 1 - place, k - (int(from_top[place - 1]) if place else 0)


def _join(bucket: int, left: int, counted: Tensor) -> tuple[int, int]:
    """The pattern of the smallest magnitude that is kept, and how many of that magnitude; 0 for all of them."""
    if left == 0:
        return _NOTHING, 0
    low, ties = _descend(counted, left)
    bits = bucket << _HALF | low
    return bits, 0 if bits == 0 or ties == int(counted[low]) else ties


def _place_ties(parts: Parts, fine: Sequence[Sequence[tuple[int, int]]]) -> list[list[Limit]]:
    """Find where the last tie that is kept stands, for the limits that part elements of one magnitude."""
    limits = [[Limit(bits) for bits, _ in source] for source in fine]
    wanted = {(m, i): ties for m, source in enumerate(fine) for i, (_, ties) in enumerate(source) if ties}
    for vectors, place in parts() if wanted else ():
        for (m, i), ties in list(wanted.items()):
            found = magnitude_bits(vectors[m].restricted()) == limits[m][i].bits
            wanted[m, i] -= int(torch.count_nonzero(found))  # which is vectorized, unlike the sum of bools
            if wanted[m, i] <= 0:
                row, column = as_rows(found).nonzero()[ties - 1].tolist()
                limits[m][i] = Limit(limits[m][i].bits, (int(row_numbers(place, found)[row]), column))
                del wanted[m, i]
        if not wanted:
            break
    return limits
