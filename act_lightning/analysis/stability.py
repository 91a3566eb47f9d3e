"""How sure masks are, as tables: bootstrap and split-half overlap, and overlap against the number of samples."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import pandas as pd
import torch
from torch import Tensor

from act_lightning.masks import (
    Choose,
    bootstrap_overlaps,
    overlap_by_samples,
    ratio_count,
    split_half_overlaps,
    top_channels,
)
from act_lightning.scores import ChunkScores

_REPEATS = 20


def mask_stability(chunks: Mapping[str, ChunkScores], ratio: float, repeats: int = _REPEATS) -> pd.DataFrame:
    """How much of a mask other samples of the same ability would have selected.

    Args:
        chunks: Scores of each chunk of an ability's samples, by ability.
        ratio: p.
        repeats: How often is drawn.

    Returns:
        A row per ability: ``samples``, ``chunks``, the mean ``bootstrap`` overlap with its lowest and highest twentieth
        (``5 %``, ``95 %``), and the mean ``split half`` overlap.
    """
    rows = {}
    for name, one in chunks.items():
        scores, choose = contenders(one.scores, ratio)
        drawn = pd.Series(bootstrap_overlaps(scores, one.tokens, choose, repeats))
        halves = split_half_overlaps(scores, one.tokens, choose, repeats)
        rows[name] = {
            "samples": sum(one.samples),
            "chunks": len(one.samples),
            "bootstrap": drawn.mean(),
            "5 %": drawn.quantile(0.05),
            "95 %": drawn.quantile(0.95),
            "split half": pd.Series(halves, dtype=float).mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def overlaps_by_samples(chunks: Mapping[str, ChunkScores], ratio: float, repeats: int = _REPEATS) -> pd.DataFrame:
    """The overlap of each whole mask with that of fewer samples.

    Args:
        chunks: Scores of each chunk of an ability's samples, by ability.
        ratio: p.
        repeats: How many subsets of each size are drawn.

    Returns:
        Columns ``ability``, ``chunks``, ``samples`` (mean number of samples of these chunks) and ``overlap`` (mean).
    """
    rows = []
    for name, one in chunks.items():
        scores, choose = contenders(one.scores, ratio)
        found = overlap_by_samples(scores, one.tokens, one.samples, choose, repeats)
        rows += [(name, some.chunks, some.samples, sum(some.overlaps) / len(some.overlaps)) for some in found]
    return pd.DataFrame(rows, columns=["ability", "chunks", "samples", "overlap"])


def samples_for(overlaps: pd.DataFrame, wanted: float) -> dict[str, float | None]:
    """How many samples each ability needs for so much of its whole mask, by ability; ``None`` where all were needed.

    Args:
        overlaps: As :func:`overlaps_by_samples` gives it.
        wanted: An overlap in (0, 1].
    """
    found: dict[str, float | None] = {}
    for name, part in overlaps.groupby("ability", sort=False):
        fewer = part[(part["overlap"] >= wanted) & (part["chunks"] < part["chunks"].max())]
        found[str(name)] = float(fewer["samples"].min()) if len(fewer) else None
    return found


def contenders(chunks: Tensor, ratio: float) -> tuple[Tensor, Choose]:
    """The channels that a mean of some of the chunks can select at all, and what selects as many of them.

    Of ⌊n·p⌋ channels every chunk's score is at least t, so no mean selects a channel whose highest score is below it:
    of 1.75 million, a few in a hundred are left.

    Args:
        chunks: The scores of each chunk, float32 ``[chunks, channels]``.
        ratio: p.

    Returns:
        float32 ``[chunks, contenders]``, and what makes a mask of scores of contenders.
    """
    count = ratio_count(chunks.shape[1], ratio)
    least = chunks.amin(0)
    needed = torch.kthvalue(least, least.numel() - count + 1).values
    scores = chunks[:, chunks.amax(0) >= needed]

    def choose(values: Tensor) -> Tensor:
        return top_channels(values, Fraction(count, values.numel()), torch.ones_like(values, dtype=torch.bool))

    return scores, choose
