"""One safetensors file as it is written: header, then bytes of its tensors at their offsets, in any order."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from act_lightning.checkpoints.atomic import storing
from act_lightning.checkpoints.header import Header


class ShardFile:
    """A file open for writing at any offset, by several threads; use it as a context manager.

    Args:
        path: The file, made if it is not there.
        header: What it is to hold.
        data_start: Its byte where the first tensor begins.
        cloned: Whether it holds the target's bytes already.
    """

    def __init__(self, path: Path, header: Header, data_start: int, cloned: bool = False) -> None:
        self.cloned = cloned
        self._path = path
        self._header = header
        self._start = data_start
        self._descriptor = -1

    def __enter__(self) -> ShardFile:
        """Open the file."""
        with storing(self._path):
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        with storing(self._path):
            os.close(self._descriptor)

    def write(self, key: str, start: int, data: Tensor) -> None:
        """Write bytes (uint8) of a tensor from its byte ``start`` on."""
        self.write_bytes(data.numpy().data, self._start + self._header.entries[key].start + start)

    def write_rows(self, key: str, rows: Tensor, values: Tensor) -> None:
        """Write some rows of a tensor.

        Args:
            key: The tensor.
            rows: Their numbers, ascending int64.
            values: ``[rows, …]`` in the dtype of the header, on the CPU.
        """
        width = prod(values.shape[1:]) * values.dtype.itemsize
        data = values.contiguous().view(-1).view(torch.uint8)
        ends = ((rows.diff() != 1).nonzero().squeeze(1) + 1).tolist()
        for first, end in zip([0, *ends], [*ends, len(rows)], strict=True):
            self.write(key, int(rows[first]) * width, data[first * width : end * width])

    def write_bytes(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` from the file's byte ``offset`` on; one call takes 2 GiB at most."""
        with storing(self._path):
            while data:
                size = os.pwrite(self._descriptor, data, offset)
                data, offset = data[size:], offset + size
