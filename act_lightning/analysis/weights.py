"""Finding 5: channels that act differently are not those whose weights changed most (paper §3.4, Tables 2, 6 to 10)."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_delta import channel_sums
from act_lightning.masks import top_channels


def weight_change(
    target: CheckpointReader, source: CheckpointReader, inventory: ChannelInventory, quiet: bool = False
) -> Tensor:
    """The ℓ2 norm of the difference of all weights that a channel owns: its row, its bias, an embedding's column.

    Both models are read a block of rows at a time, in float32, with squares summed in float64.

    Args:
        target: The target's weights.
        source: The source's weights.
        inventory: The channels of the target, with what they own.
        quiet: Whether to show no progress.

    Returns:
        float32 ``[channels]``.

    Raises:
        ActError: A weight is NaN or infinite.
    """
    return channel_sums(torch.square, target, source, inventory, quiet=quiet).sqrt().float()


def agreement(scores: Mapping[str, Tensor], change: Tensor, ratio: float = 0.01) -> pd.DataFrame:
    """How far rankings by score and by weight change agree, a row per ability (Table 2).

    Args:
        scores: float32 ``[channels]`` by ability.
        change: The ℓ2 norm of the weight change, float32 ``[channels]``.
        ratio: p, the share that each ranking selects.

    Returns:
        Columns ``overlap`` (of the top p of both), ``shared`` channels, ``chance`` (k / n) and ``rank correlation``
        (Spearman's ρ over all channels).
    """
    allowed = torch.ones_like(change, dtype=torch.bool)
    by_weight, change_ranks = top_channels(change, ratio, allowed), average_ranks(change)
    rows = {}
    for name, values in scores.items():
        shared = int((top_channels(values, ratio, allowed) & by_weight).sum())
        chosen = int(by_weight.sum())
        correlation = _correlation(average_ranks(values), change_ranks)
        rows[name] = [shared / chosen, shared, chosen / values.numel(), correlation]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["overlap", "shared", "chance", "rank correlation"])
    return frame.astype({"shared": int})


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values with the mean of their ranks, float64.

    >>> average_ranks(torch.tensor([5.0, 1.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, group, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    last = torch.cumsum(sizes, 0).double()
    ranks: Tensor = (last - (sizes.double() - 1) / 2)[group]
    return ranks


def _correlation(left: Tensor, right: Tensor) -> float:
    """Pearson's; of ranks, Spearman's. NaN where one side has no spread."""
    left, right = left - left.mean(), right - right.mean()
    return float((left * right).sum() / (left.square().sum() * right.square().sum()).sqrt())
