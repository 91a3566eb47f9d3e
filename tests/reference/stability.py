"""Overlaps of masks of resampled chunks, one channel and one chunk at a time, in plain Python."""

from __future__ import annotations

from collections.abc import Sequence

from tests.reference import masks


def mean(chunks: Sequence[Sequence[float]], tokens: Sequence[int], drawn: Sequence[int]) -> list[float]:
    """The flat mean over the tokens of the chunks drawn, each as often as it was drawn."""
    total = sum(tokens[number] for number in drawn)
    return [
        sum(chunks[number][channel] * tokens[number] for number in drawn) / total for channel in range(len(chunks[0]))
    ]


def chosen(scores: Sequence[float], ratio: str) -> set[int]:
    return {i for i, selected in enumerate(masks.top(scores, ratio, [True] * len(scores))) if selected}


def overlap(
    chunks: Sequence[Sequence[float]], tokens: Sequence[int], row: Sequence[int], column: Sequence[int], ratio: str
) -> float:
    """Share of the mask of the chunks ``row`` that the mask of the chunks ``column`` selects."""
    first, second = (chosen(mean(chunks, tokens, drawn), ratio) for drawn in (row, column))
    return len(first & second) / len(first)
