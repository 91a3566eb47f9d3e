"""How sure a mask is: what other samples of the same ability would have selected.

Scores are kept for each chunk of the samples. Samples are dealt out to chunks in turn, so that chunks are alike, and
scores of any of them together are the mean of their scores, weighted by their answer tokens. All functions take

- ``chunks``: the scores of each chunk, float32 ``[chunks, channels]``,
- ``tokens``: answer tokens of each chunk, ``[chunks]``,
- ``choose``: makes a mask, bool ``[channels]``, of scores, float32 ``[channels]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from act_lightning.masks import overlap

Choose = Callable[[Tensor], Tensor]


def scores_of(chunks: Tensor, tokens: Sequence[int], times: Tensor | None = None) -> Tensor:
    """The scores of chunks together: the mean of their scores, weighted by their tokens.

    Args:
        chunks: Scores of each chunk.
        tokens: Answer tokens of each.
        times: How often each counts, ``[chunks]``; by default once.

    Returns:
        float32 ``[channels]``.

    >>> scores_of(torch.tensor([[1.0, 0.0], [4.0, 3.0]]), [2, 1]).tolist()
    [2.0, 1.0]
    """
    weights = torch.tensor(list(tokens), dtype=torch.float64)
    weights = weights if times is None else weights * times
    shares = weights / weights.sum()
    total = torch.zeros(chunks.shape[1], dtype=torch.float64)
    for share, scores in zip(shares.tolist(), chunks, strict=True):
        if share:
            total += share * scores.double()
    return total.float()


def bootstrap_overlaps(
    chunks: Tensor, tokens: Sequence[int], choose: Choose, repeats: int = 20, seed: int = 0
) -> list[float]:
    """Share of the mask that is selected again by chunks drawn with replacement, as many as there are.

    Args:
        chunks: Scores of each chunk.
        tokens: Answer tokens of each.
        choose: Makes a mask of scores.
        repeats: How often chunks are drawn.
        seed: Seed of the draws.

    Returns:
        One overlap for each draw.
    """
    mask, generator, count = choose(scores_of(chunks, tokens)), torch.Generator().manual_seed(seed), len(chunks)
    drawn = (torch.randint(count, (count,), generator=generator) for _ in range(repeats))
    times = (torch.bincount(numbers, minlength=count) for numbers in drawn)
    return [overlap(mask, choose(scores_of(chunks, tokens, each))) for each in times]


def split_half_overlaps(
    chunks: Tensor, tokens: Sequence[int], choose: Choose, repeats: int = 20, seed: int = 0
) -> list[float]:
    """Share of the mask of one random half of the chunks that the other half selects, too.

    No sample is in both, so that this is what two measurements of half the size would agree in. Of an odd number of
    chunks one is left out.

    Returns:
        One overlap for each split; none of fewer than two chunks.
    """
    generator, half = torch.Generator().manual_seed(seed), len(chunks) // 2
    if not half:
        return []
    found = []
    for _ in range(repeats):
        order = torch.randperm(len(chunks), generator=generator)
        one, other = (_mask_of(chunks, tokens, choose, part) for part in (order[:half], order[half : 2 * half]))
        found.append(overlap(one, other))
    return found


class SubsetOverlap(NamedTuple):
    """How much of the whole mask some of the samples select.

    Attributes:
        chunks: How many chunks were used.
        samples: How many samples these have, on average.
        overlaps: Share of the whole mask that they select, one for each draw.
    """

    chunks: int
    samples: float
    overlaps: list[float]


def overlap_by_samples(
    chunks: Tensor,
    tokens: Sequence[int],
    samples: Sequence[int],
    choose: Choose,
    repeats: int = 20,
    seed: int = 0,
) -> list[SubsetOverlap]:
    """The overlap of the whole mask with that of 1, 2, 4 … random chunks, and of all.

    The samples of a subset are among those of the whole, which flatters large subsets: see
    :func:`split_half_overlaps` for what fresh samples would do.

    Args:
        chunks: Scores of each chunk.
        tokens: Answer tokens of each.
        samples: Samples of each.
        choose: Makes a mask of scores.
        repeats: How many subsets of each size are drawn.
        seed: Seed of the draws.
    """
    mask, generator, count = choose(scores_of(chunks, tokens)), torch.Generator().manual_seed(seed), len(chunks)
    sizes = [size for size in (2**power for power in range(count.bit_length())) if size < count]
    found = []
    for size in sizes:
        subsets = [torch.randperm(count, generator=generator)[:size] for _ in range(repeats)]
        overlaps = [overlap(mask, _mask_of(chunks, tokens, choose, subset)) for subset in subsets]
        used = [sum(samples[number] for number in subset.tolist()) for subset in subsets]
        found.append(SubsetOverlap(size, sum(used) / len(used), overlaps))
    return [*found, SubsetOverlap(count, float(sum(samples)), [1.0])]


def _mask_of(chunks: Tensor, tokens: Sequence[int], choose: Choose, numbers: Tensor) -> Tensor:
    return choose(scores_of(chunks[numbers], [tokens[number] for number in numbers.tolist()]))
