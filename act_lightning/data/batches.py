"""Samples to batches: padded or packed, composed once, dealt to processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from act_lightning.data.labels import Sample
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue

Batch = dict[str, Tensor]
Dealt = TypeVar("Dealt")
MAX_PADDING = 0.02
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


_BLOCK = 1 << 24  # bytes
_ALIGNED = 64  # bytes, the line of a cache


class BufferPool:
    """Memory for copies that are needed until :meth:`clear`, then used for the next ones.

    On a CPU, what is given back goes to the kernel, and comes back a page at a time, each filled with zeros and faulted
    in: a tenth of the time of reading a batch, where all outputs of a model wait for another. Accelerators have
    allocators that keep what is given back, so that nothing is kept here.
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._block = self._used = 0

    def clear(self) -> None:
        """Give up all copies: their memory is used again."""
        self._block = self._used = 0

    def select(self, values: Tensor, index: Tensor) -> Tensor:
        """Some rows of ``values``.

        Args:
            values: ``[rows, …]``, without gradients.
            index: Their numbers, int64 ``[count]``.

        Returns:
            ``[count, …]``, a copy that is good until :meth:`clear`.
        """
        if values.device.type != "cpu":
            return values.index_select(0, index)
        shape = (len(index), *values.shape[1:])
        room = self._room(prod(shape) * values.element_size()).view(values.dtype).view(shape)
        return torch.index_select(values, 0, index, out=room)

    def _room(self, size: int) -> Tensor:
        """So many bytes, uint8 ``[size]``."""
        while self._block < len(self._blocks) and self._used + size > len(self._blocks[self._block]):
            self._block, self._used = self._block + 1, 0
        if self._block == len(self._blocks):
            self._blocks.append(torch.empty(max(size, _BLOCK), dtype=torch.uint8))
        start = self._used
        self._used += -(-size // _ALIGNED) * _ALIGNED
        return self._blocks[self._block][start : start + size]


@dataclass(frozen=True)
class AnswerPositions:
    """Where the answer tokens of a batch are.

    Attributes:
        mask: Bool ``[rows, length]``.
    """

    mask: Tensor

    @cached_property
    def tokens(self) -> int:
        """Number of answer tokens."""
        return len(self.index)

    @cached_property
    def index(self) -> Tensor:
        """Their places when all rows are laid in one, int64 ``[tokens]``."""
        return self.mask.flatten().nonzero().squeeze(1)

    def to(self, device: torch.device) -> AnswerPositions:
        """The same on a device, where finding and counting them would have to wait for all work that is under way."""
        moved = AnswerPositions(self.mask.to(device))
        moved.__dict__.update(tokens=self.tokens, index=self.index.to(device))
        return moved

    def take(self, output: Tensor, workspace: BufferPool | None = None) -> Tensor:
        """The part of a module's output that belongs to answer tokens.

        Args:
            output: ``[rows, length, channels]``; with heads ``[rows, length, heads, channels]`` or
                ``[rows, heads, length, channels]``; flattened ``[rows · length, channels]``; rows may be 1 where
                all rows share it (position embeddings).
            workspace: Where to copy them to.

        Returns:
            ``[tokens, channels]`` or ``[tokens, heads, channels]``; without a workspace a view where every token is an
            answer, else a copy.
        """
        rows, length = self.mask.shape
        if output.ndim == 2:
            output = output.view(-1, length, output.shape[-1])
        if output.ndim == 4 and output.shape[1] != length:
            output = output.transpose(1, 2)
        tokens = output.expand(rows, *output.shape[1:]).flatten(0, 1)
        if workspace is not None:
            return workspace.select(tokens, self.index)
        return tokens if self.tokens == self.mask.numel() else tokens.index_select(0, self.index)

    def take_from_input(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook for the language model's head: it computes logits ``[1, tokens, vocabulary]`` only."""
        return (self.take(args[0]).unsqueeze(0), *args[1:])


def normalize_batch(batch: Mapping[str, Tensor], config: object) -> Mapping[str, Tensor]:
    """One more column of padding where the length equals a number of heads.

    Only then could ``[rows, heads, length, channels]`` be taken for ``[rows, length, heads, channels]``.

    Args:
        batch: ``input_ids``, ``labels`` and so on, ``[rows, length]``.
        config: The config of the model that reads it.
    """
    heads = {getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    if batch["input_ids"].shape[1] not in heads:
        return batch
    fill = {"labels": IGNORED}  # and zeros elsewhere: a sample of its own at the end of a packed row
    longer = {name: nn.functional.pad(values, (0, 1), value=fill.get(name, 0)) for name, values in batch.items()}
    return normalize_batch(longer, config)
