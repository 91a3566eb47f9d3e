"""Memory for copies that come again and again."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

_BLOCK = 1 << 24  # bytes
_ALIGNED = 64  # bytes, the line of a cache


class Workspace:
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
