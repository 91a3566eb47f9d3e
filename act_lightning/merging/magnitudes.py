"""The k largest magnitudes of a tensor that is read in parts: an exact selection by counting bit patterns.

Float32 numbers that are not negative sort like their bit patterns. The first pass counts the upper halves of the
patterns. The second counts the lower halves of those patterns that share the upper half of the k-th largest. A third is
needed only if some, but not all, of the elements that equal the k-th largest stay. Nothing is sorted or held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from act_lightning.merging.method import Parts, TensorSlice
from act_lightning.merging.sparsify import as_rows, at_least

_MAGNITUDE = 0x7FFFFFFF
_HALF = 16
_ABOVE_ALL = _MAGNITUDE  # no number has a larger pattern


@dataclass(frozen=True)
class Threshold:
    """The smallest of the k largest magnitudes.

    Attributes:
        bits: Its bit pattern.
        last_tie: Row and column of the last element of exactly this magnitude that stays, since ties go to the lower
            position; ``None`` if all of them stay.
    """

    bits: int
    last_tie: tuple[int, int] | None = None

    def mask(self, delta: Tensor, tensor_slice: TensorSlice) -> Tensor:
        """Which elements of some rows (float32 ``[rows, …]``) are among the k largest, as a bit mask of that shape."""
        magnitudes = as_rows(magnitude_bits(delta))
        if self.last_tie is None:
            return at_least(magnitudes, self.bits).view(delta.shape)
        row, column = self.last_tie
        rows = tensor_slice.row_numbers(len(delta), delta.device)
        limits = torch.where(rows <= row, self.bits, self.bits + 1).to(torch.int32)
        mask = at_least(magnitudes, limits.unsqueeze(1))
        mask[rows == row, column + 1 :] = at_least(magnitudes[rows == row, column + 1 :], self.bits + 1)
        return mask.view(delta.shape)


def magnitude_bits(delta: Tensor) -> Tensor:
    """The bit pattern of |δ|, int32, of the shape of ``delta`` (float32)."""
    return delta.contiguous().view(torch.int32) & _MAGNITUDE


def top_k_thresholds(parts: Parts, counts: Callable[[int], Sequence[int]]) -> list[list[Threshold]]:
    """The thresholds of the k largest |δ| among the selected elements of a tensor, for every source and every k.

    Args:
        parts: Iterates over the parts of the tensor.
        counts: Gives the values of k for a source, from its number of selected elements.

    Returns:
        For each source, one threshold per k.
    """
    upper, selected = _upper_histograms(parts)
    buckets = [
        [_find_kth(histogram, k) for k in counts(count)] for histogram, count in zip(upper, selected, strict=True)
    ]
    lower = _lower_histograms(parts, [[bucket for bucket, _ in of_source] for of_source in buckets])
    thresholds: list[list[Threshold]] = [[] for _ in buckets]
    ties_to_keep: dict[tuple[int, int], int] = {}
    for source, of_source in enumerate(buckets):
        for i, (bucket, rank) in enumerate(of_source):
            if rank == 0:
                thresholds[source].append(Threshold(_ABOVE_ALL))
                continue
            histogram = lower[source][i]
            low, ties = _find_kth(histogram, rank)
            bits = bucket << _HALF | low
            thresholds[source].append(Threshold(bits))
            if bits and ties < int(histogram[low]):
                ties_to_keep[source, i] = ties
    if ties_to_keep:
        _find_last_ties(parts, thresholds, ties_to_keep)
    return thresholds


def _find_kth(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bucket that holds the k-th largest, and its rank from the top within that bucket."""
    from_top = histogram.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, k))
    return len(histogram) - 1 - position, k - (int(from_top[position - 1]) if position else 0)


def _upper_histograms(parts: Parts) -> tuple[list[Tensor], list[int]]:
    """For each source, how often each upper half occurs, and how many elements are selected.

    Elements that no mask selects count as zeros: they are the last to stay, and change nothing.
    """
    histograms: list[Tensor] = []
    selected: list[int] = []
    for vectors, _ in parts():
        if not histograms:
            selected = [0] * len(vectors)
            histograms = [torch.zeros(1 << _HALF - 1, dtype=torch.int64, device=v.delta.device) for v in vectors]
        for i, vector in enumerate(vectors):
            bits = magnitude_bits(vector.restricted()).flatten()
            histograms[i] += torch.bincount(bits >> _HALF, minlength=1 << _HALF - 1)
            count = vector.delta.numel()
            if vector.mask is not None:
                count = int(vector.mask.sum()) * (count // max(1, vector.mask.numel()))
            selected[i] += count
    return histograms, selected


def _lower_histograms(parts: Parts, buckets: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    """For each source and each of its ``buckets`` (upper halves), how often each lower half occurs."""
    histograms = [[torch.zeros((), dtype=torch.int64) for _ in of_source] for of_source in buckets]
    for vectors, _ in parts():
        for source, vector in enumerate(vectors):
            bits = magnitude_bits(vector.restricted()).flatten()
            for i, bucket in enumerate(buckets[source]):
                low = bits[bits >> _HALF == bucket] & (1 << _HALF) - 1
                histograms[source][i] = histograms[source][i] + torch.bincount(low, minlength=1 << _HALF)
    return histograms


def _find_last_ties(parts: Parts, thresholds: list[list[Threshold]], ties_to_keep: dict[tuple[int, int], int]) -> None:
    """Set ``last_tie`` of those thresholds of which only some ties stay."""
    for vectors, tensor_slice in parts():
        for (source, i), ties in list(ties_to_keep.items()):
            bits = thresholds[source][i].bits
            equal = magnitude_bits(vectors[source].restricted()) == bits
            ties_to_keep[source, i] -= int(torch.count_nonzero(equal))  # vectorized, unlike the sum of bools
            if ties_to_keep[source, i] <= 0:
                row, column = as_rows(equal).nonzero()[ties - 1].tolist()
                row_numbers = tensor_slice.row_numbers(len(equal), equal.device)
                thresholds[source][i] = Threshold(bits, (int(row_numbers[row]), column))
                del ties_to_keep[source, i]
        if not ties_to_keep:
            return
