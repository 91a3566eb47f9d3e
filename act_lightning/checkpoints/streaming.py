"""A merge from disk to disk: some rows at a time are read, changed where concerned, and written at their place."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from act_lightning.checkpoints.export import output_issues, plan_files, progress, require_space, write_texts
from act_lightning.checkpoints.files import atomic_folder, reflink, wrap_os_errors
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import Entry, Header, check_finite, read_opening
from act_lightning.errors import raise_if_any


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
        with wrap_os_errors(self._path):
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        with wrap_os_errors(self._path):
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
        with wrap_os_errors(self._path):
            while data:
                size = os.pwrite(self._descriptor, data, offset)
                data, offset = data[size:], offset + size


_BYTES_AT_ONCE = 1 << 20  # stays in a CPU's cache between reading, checking and writing
_MOSTLY = 0.5
_MOST_THREADS = 4  # each takes memory, and the disk is what they wait for


class RowUpdates(Protocol):
    """New values for some rows of some parameters, such as those of a masked injection."""

    @property
    def names(self) -> Collection[str]:
        """The parameters concerned, tied ones under any of their names."""

    def rows(self, name: str) -> Tensor:
        """Numbers of the rows concerned, ascending int64."""

    def changes(
        self, name: str, read: Callable[[Tensor], Tensor], rows: Tensor, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Some of ``rows`` at a time with their new values, where ``read`` gives the original ones."""


def merge_checkpoint(
    out: Path,
    target: Path,
    change: RowUpdates,
    dtype: torch.dtype | None,
    extra_files: Mapping[str, str | bytes],
    device: torch.device | None = None,
) -> None:
    """Write ``target`` with some rows of some parameters changed; a tied matrix in every place where it is stored.

    Shards, key names, dtypes and metadata are the target's. Each file is cloned where that costs nothing and little
    changes; else its bytes are copied as they are checked. Then the changed rows are written at their offsets. A few
    rows are in memory at a time, whatever the model's size.

    Unlike an export, which cannot be made again without training, the files are left to the kernel to flush, as ``cp``
    leaves them.

    Args:
        out: The folder to be, as in :func:`~act_lightning.checkpoints.export.export_model`.
        target: The folder of the model to be changed.
        change: What changes.
        dtype: The dtype on disk, to which new values are rounded once; by default each parameter has the target's.
        extra_files: Further files by name.
        device: Where rows are merged; by default the CPU.

    Raises:
        ActError: As ``export_model``; NaN or infinity in the target.
    """
    raise_if_any(output_issues(out, target, "output"))
    with CheckpointReader(target) as reader:
        planned = plan_files(reader, dtype)
        require_space(out, planned)
        with atomic_folder(out, durable=False) as folder, progress(out, planned) as bar:
            for file, header in planned.items():
                tensors = _tensors(reader, file, header, change)
                with _open_shard(folder / file, reader, header, tensors) as shard, _threads() as pool:
                    merge = _TensorMerge(reader, shard, change, device or torch.device("cpu"))
                    for size in pool.map(merge.write, tensors):
                        bar.update(size)
            write_texts(folder, reader, planned, dtype, extra_files)


@dataclass(frozen=True)
class _Stored:
    """One stored tensor.

    Attributes:
        key: The checkpoint's key.
        name: The parameter's name; ``None`` for what is no parameter.
        before: Its place in the target.
        after: Its place in the new file.
        changed: The name under which it changes.
        rows: Numbers of the rows that change; ``None`` if it does not.
    """

    key: str
    name: str | None
    before: Entry
    after: Entry
    changed: str = ""
    rows: Tensor | None = None

    @property
    def share(self) -> float:
        """The share of its rows that change."""
        return 0.0 if self.rows is None else len(self.rows) / self.before.shape[0]


def _tensors(reader: CheckpointReader, file: str, header: Header, change: RowUpdates) -> list[_Stored]:
    concerned = {key: name for name in change.names for key in reader.copies(name)}
    found = []
    for key, after in header.entries.items():
        name, before = reader.keymap.names.get(key), reader.headers[file].entries[key]
        changed = concerned.get(key, "")
        found.append(_Stored(key, name, before, after, changed, change.rows(changed) if changed else None))
    return found


@contextmanager
def _open_shard(
    path: Path, reader: CheckpointReader, header: Header, tensors: Iterable[_Stored]
) -> Iterator[ShardFile]:
    """The file to be written: with the target's own bytes where these can be had for nothing and mostly stay."""
    origin, before = reader.folder / path.name, reader.headers[path.name]
    changing = sum(one.share * one.after.size for one in tensors)
    cloned = header == before and changing < _MOSTLY * header.data_size and reflink(origin, path)
    opening = header.encode() if header != before else read_opening(origin, before)
    with ShardFile(path, header, len(opening), cloned) as shard:
        shard.write_bytes(opening, 0)
        yield shard


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch would use for one tensor, up to a few, each at work on a tensor of its own."""
    count = torch.get_num_threads()
    _reuse_freed_memory()
    try:
        with ThreadPoolExecutor(min(count, _MOST_THREADS), initializer=lambda: torch.set_num_threads(1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)


def _reuse_freed_memory() -> None:
    """Have glibc use freed buffers again, rather than give each back to the kernel and fault its pages in anew.

    The size from which it does so grows to that of the largest block freed so far, up to 32 MiB (M_MMAP_THRESHOLD in
    mallopt(3)). The block is never touched, so that it takes no memory; a third of the time of TIES goes without it.
    """
    torch.empty(30 << 20, dtype=torch.uint8)


@dataclass(frozen=True)
class _TensorMerge:
    """What a thread does with one tensor after another."""

    reader: CheckpointReader
    shard: ShardFile
    change: RowUpdates
    device: torch.device

    def write(self, one: _Stored) -> int:
        """Write one tensor; returns its size in bytes."""
        if one.name is None:
            self._copy(one)
        elif one.share < 1:
            self._carry(one, one.name)
        if one.rows is not None:
            for rows, values in self.change.changes(one.changed, self._reading(one), one.rows, self.device):
                self._store(one, rows, values)
            self.reader.release(one.changed)
        return one.after.size

    def _reading(self, one: _Stored) -> Callable[[Tensor], Tensor]:
        # Rounded once, to the dtype that is written; float64 is kept, for elements that stay keep every bit.
        same = one.before.dtype == one.after.dtype
        dtype = one.before.dtype if same else torch.promote_types(one.before.dtype, torch.float32)
        return lambda rows: self.reader.rows(one.changed, rows).to(self.device, dtype)

    def _copy(self, one: _Stored) -> None:
        """Copy what is no parameter."""
        for start in range(0, 0 if self.shard.cloned else one.before.size, _BYTES_AT_ONCE):
            size = min(_BYTES_AT_ONCE, one.before.size - start)
            self.shard.write(one.key, start, self.reader.raw(one.key, start, size))

    def _carry(self, one: _Stored, name: str) -> None:
        """Copy a parameter while looking for NaN and infinity; of a clone, only look."""
        width = prod(one.before.shape[1:]) * one.before.dtype.itemsize
        for rows in torch.arange(one.before.shape[0]).split(max(1, _BYTES_AT_ONCE // max(1, width))):
            values = self.reader.rows(name, rows)
            if not self.shard.cloned:
                self._store(one, rows, values)

    def _store(self, one: _Stored, rows: Tensor, values: Tensor) -> None:
        stored = values.to("cpu", one.after.dtype)
        if stored.dtype != values.dtype:
            check_finite(stored, "output", one.key, rows)
        self.shard.write_rows(one.key, rows, stored)
