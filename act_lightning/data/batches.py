"""Samples to batches: padded or packed, composed once, dealt to processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from act_lightning.data.labels import Sample
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue

Batch = dict[str, Tensor]
Dealt = TypeVar("Dealt")
MOST_WASTE = 0.02
"""The share of a batch that may be padding, where samples can be grouped by length."""


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """One batch, padded on the right.

    Args:
        samples: One sample or more.
        pad_id: Token id that fills up ``input_ids``.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` (−100 at padding), int64 ``[rows, length]``.
    """
    rows = [sample.input_ids for sample in samples]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad_sequence([sample.labels for sample in samples], batch_first=True, padding_value=IGNORED),
    }


def unbatch(batch: Mapping[str, Tensor]) -> list[Sample]:
    """The samples in a batch: padding on either side undone, packed rows split.

    Args:
        batch: ``input_ids`` and ``labels`` ``[rows, length]``; ``attention_mask`` of the same shape where there is
            padding; ``position_ids`` of the same shape, which restart where the next sample of a packed row begins.

    Returns:
        Samples on the CPU, without text.

    Raises:
        ActError: If ids or labels are missing.
    """
    if missing := {"input_ids", "labels"} - set(batch):
        hint = "Let the loader give both, with labels of -100 wherever no answer token stands."
        raise ActError(ConfigIssue("batch", list(batch), f"must hold {' and '.join(sorted(missing))}", hint))
    ids = batch["input_ids"].cpu()
    mask = batch.get("attention_mask", torch.ones_like(ids)).cpu().bool()
    positions = batch.get("position_ids", torch.arange(ids.shape[1]).expand_as(ids)).cpu().expand_as(ids)
    samples = []
    for row, labels, real, position in zip(ids, batch["labels"].cpu(), mask, positions, strict=True):
        lengths = _lengths(position[real])
        parts = zip(row[real].split(lengths), labels[real].split(lengths), strict=True)
        samples += [Sample(part.clone(), its_labels.clone()) for part, its_labels in parts]
    return samples


def _lengths(positions: Tensor) -> list[int]:
    """Lengths of the runs in which positions grow."""
    restarts = 1 + (positions[1:] <= positions[:-1]).nonzero().flatten()
    edges = [0, *restarts.tolist(), len(positions)]
    return [end - start for start, end in pairwise(edges)]


def token_budget_batches(
    lengths: Sequence[int], budget: int, waste: float = 1.0, packed: bool = False
) -> list[list[int]]:
    """Group samples of like length so that each group's tokens, padding included, stay within a budget.

    The longest come first, so that a batch too large for the memory shows at once.

    Args:
        lengths: Tokens of each sample.
        budget: Bound on rows × longest, or for packed rows on the sum of lengths; a single longer sample is a batch of
            its own.
        waste: Bound on the share of a batch that is padding.
        packed: Whether the samples of a batch are packed into one row, without padding.

    Returns:
        Indices of the samples in each batch; every sample in exactly one.

    >>> token_budget_batches([3, 9, 4, 4], budget=8)
    [[1], [2, 3], [0]]
    >>> token_budget_batches([3, 5, 4, 4], budget=12, packed=True)
    [[1, 2], [3, 0]]
    """
    batches: list[list[int]] = []
    longest, tokens = 0, 0  # of the last batch
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        together = tokens + lengths[index]
        room = together if packed else (len(batches[-1]) + 1) * longest if batches else 0
        if batches and room <= budget and together >= room * (1 - waste):
            batches[-1].append(index)
            tokens = together
        else:
            batches.append([index])
            longest = tokens = lengths[index]
    return batches


def shard(batches: Sequence[Dealt], rank: int, world_size: int) -> list[Dealt]:
    """The whole batches of one process: those numbered r, r + W, r + 2W and so on.

    >>> shard(["a", "b", "c", "d", "e"], rank=1, world_size=2)
    ['b', 'd']
    """
    return list(batches[rank::world_size])
