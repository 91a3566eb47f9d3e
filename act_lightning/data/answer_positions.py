"""Where the answer tokens of a batch are, and memory for what is copied from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

from act_lightning.defaults import IGNORED

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
