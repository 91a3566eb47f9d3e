"""How many rows and tokens a set has, and how long its samples are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from act_lightning.data import IGNORED, Sample

_SHORTEST = 16


@dataclass(frozen=True)
class Figures:
    """One set in numbers.

    Attributes:
        rows: Rows that were read.
        samples: Rows that are used.
        dropped: Rows with an empty answer or without an answer token.
        cut: Samples that were cut at the longest length allowed.
        tokens: Tokens of all samples.
        answer_tokens: Those of them that scores, loss and evaluation count.
        longest: Tokens of the longest sample.
        lengths: Histogram: number of samples of at most 16, 32, 64, … tokens, and more than the bin before.
    """

    rows: int
    samples: int
    dropped: int
    cut: int
    tokens: int
    answer_tokens: int
    longest: int
    lengths: dict[int, int]


def figures_of(samples: Sequence[Sample], rows: int) -> Figures:
    """The figures of a set.

    Args:
        samples: Its samples.
        rows: Rows that were read for them.
    """
    lengths = [len(sample.input_ids) for sample in samples]
    return Figures(
        rows=rows,
        samples=len(samples),
        dropped=rows - len(samples),
        cut=sum(sample.cut for sample in samples),
        tokens=sum(lengths),
        answer_tokens=sum(int((sample.labels != IGNORED).sum()) for sample in samples),
        longest=max(lengths, default=0),
        lengths=histogram(lengths),
    )


def histogram(lengths: Sequence[int]) -> dict[int, int]:
    """How many lengths fall into bins that double in width; bins before the first and after the last are left out.

    >>> histogram([3, 16, 17, 100])
    {16: 2, 32: 1, 64: 0, 128: 1}
    """
    if not lengths:
        return {}
    counts = Counter(max(_SHORTEST, 1 << (length - 1).bit_length()) for length in lengths)
    edge, found = min(counts), dict[int, int]()
    while edge <= max(counts):
        found[edge] = counts[edge]
        edge *= 2
    return found
