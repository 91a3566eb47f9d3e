"""A merge from disk to disk: a few rows at a time are read, changed if selected, and written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from act_lightning.channels import matrix_shape
from act_lightning.checkpoints.export import FileContent, open_output
from act_lightning.checkpoints.files import reflink, wrap_os_errors
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import HASHING_THREADS, Entry, Header, check_finite, file_sha256

_BYTES_AT_ONCE = 1 << 20  # stays in a CPU's cache between reading, checking and writing
_BYTES_PER_WRITE = 1 << 18  # a larger write takes larger pages, which a virtual machine may have to ask its host for
_MAX_REFLINK_SHARE = 0.5  # of a file's bytes that change
_MAX_THREADS = 4  # each takes memory, and all of them wait for the disk


class RowUpdates(Protocol):
    """New values for some rows of some parameters, such as those of a masked injection."""

    @property
    def names(self) -> Collection[str]:
        """The parameters that change, tied ones under any of their names."""

    def rows(self, name: str) -> Tensor:
        """Indices of the rows that change, ascending int64, of the parameter seen as a matrix."""

    def changes(
        self, name: str, read: Callable[[Tensor], Tensor], rows: Tensor, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield some of ``rows`` at a time with their new values; ``read`` returns the original ones."""


def merge_checkpoint(
    out: Path,
    target: Path,
    updates: RowUpdates,
    dtype: torch.dtype | None,
    extra_files: Mapping[str, FileContent],
    device: torch.device | None = None,
    overwrite: bool = False,
    check: Callable[[Mapping[str, str]], None] | None = None,
) -> dict[str, str]:
    """Write ``target`` with some rows of some parameters changed; a tied matrix wherever it is stored.

    Shards, key names, dtypes and metadata are the target's. Each file is a reflink of the target's if the file system
    can make one and little changes, and is checked itself, so that the disk is read once; otherwise its bytes are
    copied as they are checked. Then the changed rows are written at their offsets. A few rows are in memory at a time,
    whatever the model's size.

    Unlike an export, whose training would be lost, the files are not flushed unless they replace others: the kernel
    does that in its own time, as after ``cp``.

    Args are those of :func:`~act_lightning.checkpoints.export.export_model`; new values are rounded once, to ``dtype``,
    and rows are merged on ``device``, by default the CPU. ``check`` is called with the SHA-256 of each of the target's
    weight files, which are read but once; what it raises keeps the folder from appearing.

    Returns:
        The SHA-256 of each weight file, computed as its tensors are written.

    Raises:
        ActError: As ``export_model``; or the target holds NaN or infinity.
    """
    output = open_output(out, target, dtype, extra_files, overwrite, durable=False)
    with output as (folder, reader, headers, sha256, bar), ThreadPoolExecutor(HASHING_THREADS) as hashing:
        pending, originals, device = dict[str, Future[str]](), dict[str, Future[str]](), device or torch.device("cpu")
        in_pieces = {name: reader.stored_keys(name) for name in updates.names if name in reader.keymap.pieces}
        updated_names = {key: name for name in updates.names for key in reader.stored_keys(name)}
        waiting = {name: {reader.file_of(key) for key in keys} for name, keys in in_pieces.items()}
        data_starts: dict[str, int] = {}
        for file, header in headers.items():
            tensors = []
            for key, after in header.entries.items():
                updated = updated_names.get(key)
                rows = None if updated is None or updated in in_pieces else updates.rows(updated)
                share = _changed_share(key, reader, updates) if updated in in_pieces else 0.0
                before = reader.headers[file].entries[key]
                name = reader.keymap.names.get(key)
                tensors.append(_Tensor(key, name, before, after, updated or "", rows, share))
            with _open_shard(folder / file, reader, header, tensors) as shard, _thread_pool() as pool:
                data_starts[file] = shard.data_start
                write = partial(_write_tensor, reader=reader, shard=shard, updates=updates, device=device)
                written = [pool.submit(write, tensor) for tensor in tensors]
                if check is not None:
                    start = reader.headers[file].data_start
                    ends = [start + tensor.before.end for tensor in tensors]
                    originals[file] = hashing.submit(_sha256_behind, target / file, ends, written)
                if not any(updated_names.get(tensor.key) in in_pieces for tensor in tensors):
                    ends = [shard.data_start + tensor.after.end for tensor in tensors]
                    pending[file] = hashing.submit(_sha256_behind, folder / file, ends, written)
                try:
                    for future in written:
                        bar.update(future.result())
                finally:
                    pool.shutdown(cancel_futures=True)
            ready = [name for name, files in waiting.items() if files <= data_starts.keys()]
            with ExitStack() as stack, _thread_pool() as pool:
                files = {file for name in ready for file in waiting.pop(name)}
                shards = {
                    file: stack.enter_context(ShardFile(folder / file, headers[file], data_starts[file]))
                    for file in files
                }
                write_pieces = partial(_write_pieces, reader=reader, shards=shards, updates=updates, device=device)
                list(pool.map(write_pieces, ready))
            unfinished = {file for files in waiting.values() for file in files}
            for file in data_starts.keys() - unfinished - pending.keys():
                pending[file] = hashing.submit(file_sha256, folder / file)
        if check is not None:
            check({file: original.result() for file, original in originals.items()})
        sha256 |= {file: pending[file].result() for file in headers}
        return sha256


def _sha256_behind(path: Path, ends: Sequence[int], written: Sequence[Future[int]]) -> str:
    """The SHA-256 of a file that is written or copied, each part read after that, while it still lies in memory.

    Args:
        path: The file.
        ends: Where its tensors end.
        written: What waits for each of them.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BYTES_PER_WRITE))
    with path.open("rb", buffering=0) as file:
        for end, future in zip(ends, written, strict=True):
            future.result()
            while size := file.readinto(buffer[: end - file.tell()]):
                digest.update(buffer[:size])
    return digest.hexdigest()


def _changed_share(key: str, reader: CheckpointReader, updates: RowUpdates) -> float:
    """The share of a stored tensor that changes, because parameters do of which it holds pieces."""
    changed = size = 0
    for name, pieces in reader.parts[key].items():
        rows = updates.rows(name) if name in updates.names else torch.zeros(0, dtype=torch.int64)
        width = matrix_shape(torch.Size(reader.spec.shapes[name]))[1]
        for piece in pieces:
            first, end = torch.searchsorted(rows, torch.tensor([piece.row, piece.row + piece.height])).tolist()
            changed, size = changed + (end - first) * width, size + piece.height * width
    return changed / size


def _write_pieces(
    name: str, reader: CheckpointReader, shards: Mapping[str, ShardFile], updates: RowUpdates, device: torch.device
) -> None:
    """Write the changed rows of a parameter in pieces, in a thread of the pool."""
    dtype = reader.dtype_of(name)
    files = {key: reader.file_of(key) for key in reader.stored_keys(name)}
    if any(shards[file].dtype_of(key) != dtype for key, file in files.items()):
        dtype = torch.promote_types(dtype, torch.float32)

    def read(rows: Tensor) -> Tensor:
        return reader.rows(name, rows).to(device, dtype)

    for rows, values in updates.changes(name, read, updates.rows(name), device):
        for key, positions, stored_rows in reader.places(name, rows):
            order = torch.argsort(stored_rows)
            shards[files[key]].write_rows(key, stored_rows[order], values[positions[order].to(values.device)])
    reader.release(name)


@dataclass(frozen=True)
class _Tensor:
    """A stored tensor.

    Attributes:
        key: The checkpoint's key.
        name: The parameter's name; ``None`` if it is no parameter.
        before: Its entry in the target's file.
        after: Its entry in the new file.
        updated: The name under which it is updated, which for a tied parameter may be another.
        rows: Indices of the rows that change; ``None`` if none does, or it is part of a parameter in pieces.
        share: Of such a part, the share that will change with its parameter.
    """

    key: str
    name: str | None
    before: Entry
    after: Entry
    updated: str
    rows: Tensor | None
    share: float = 0.0

    @property
    def changed_share(self) -> float:
        """The share of its rows that change."""
        return self.share if self.rows is None else len(self.rows) / matrix_shape(torch.Size(self.before.shape))[0]


class ShardFile(AbstractContextManager["ShardFile"]):
    """A file open for reading and writing at any offset, by several threads; created if it does not exist.

    Its first tensor begins at ``data_start``; if ``reflinked``, it holds the target's bytes already.
    """

    def __init__(self, path: Path, header: Header, data_start: int, reflinked: bool = False) -> None:
        self.reflinked = reflinked
        self.data_start = data_start
        self._path = path
        self._header = header
        with wrap_os_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        with wrap_os_errors(self._path):
            os.close(self._descriptor)

    def dtype_of(self, key: str) -> torch.dtype:
        """The dtype in which a tensor is written."""
        return self._header.entries[key].dtype

    def raw(self, key: str, start: int, size: int) -> Tensor:
        """Bytes of a tensor of the new file, uint8 ``[size]``, from its byte ``start`` on."""
        data = torch.empty(size, dtype=torch.uint8)
        offset = self.data_start + self._header.entries[key].start + start
        with wrap_os_errors(self._path):
            if os.preadv(self._descriptor, [data.numpy().data], offset) < size:
                raise OSError("it ends too early")
        return data

    def write(self, key: str, start: int, data: Tensor) -> None:
        """Write ``data`` (uint8) from the byte ``start`` of a tensor on."""
        self.write_bytes(data.numpy().data, self.data_start + self._header.entries[key].start + start)

    def write_rows(self, key: str, rows: Tensor, values: Tensor) -> None:
        """Write some rows (ascending int64) of a tensor: ``values`` ``[rows, …]``, rounded to its dtype on disk.

        Raises:
            ActError: A value is not finite once rounded.
        """
        stored = values.to("cpu", self._header.entries[key].dtype)
        if stored.dtype != values.dtype:
            check_finite(stored, "output", key, rows)
        width = prod(stored.shape[1:]) * stored.dtype.itemsize
        data = stored.contiguous().view(-1).view(torch.uint8)
        ends = ((rows.diff() != 1).nonzero().squeeze(1) + 1).tolist()  # of runs of consecutive rows
        for first, end in zip([0, *ends], [*ends, len(rows)], strict=True):
            self.write(key, int(rows[first]) * width, data[first * width : end * width])

    def write_bytes(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` from the file's byte ``offset`` on."""
        with wrap_os_errors(self._path):
            while data:
                size = os.pwrite(self._descriptor, data[:_BYTES_PER_WRITE], offset)
                data, offset = data[size:], offset + size


@contextmanager
def _open_shard(
    path: Path, reader: CheckpointReader, header: Header, tensors: Collection[_Tensor]
) -> Iterator[ShardFile]:
    """The file to write, with its header: a reflink of the target's where most of it stays."""
    source, source_header = reader.folder / path.name, reader.headers[path.name]
    opening, reflinked = header.encode(), False
    if header == source_header:
        with source.open("rb") as file:
            opening = file.read(header.data_start)
        changing = sum(tensor.changed_share * tensor.after.size for tensor in tensors)
        reflinked = changing < _MAX_REFLINK_SHARE * header.data_size and reflink(source, path)
    with ShardFile(path, header, len(opening), reflinked) as shard:
        shard.write_bytes(opening, 0)
        yield shard


@contextmanager
def _thread_pool() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch would use for one tensor, up to a few, each working on its own tensor."""
    count = torch.get_num_threads()
    # Makes glibc reuse freed buffers of up to 32 MiB, rather than return each to the kernel and fault its pages in anew
    # (M_MMAP_THRESHOLD in mallopt(3)). The block is never touched and takes no memory; TIES takes a third less time.
    torch.empty(30 << 20, dtype=torch.uint8)
    try:
        with ThreadPoolExecutor(min(count, _MAX_THREADS), initializer=lambda: torch.set_num_threads(1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)


def _write_tensor(
    tensor: _Tensor, reader: CheckpointReader, shard: ShardFile, updates: RowUpdates, device: torch.device
) -> int:
    """Write one tensor in a thread of the pool; returns its size in bytes."""
    key, before, same = tensor.key, tensor.before, tensor.before.dtype == tensor.after.dtype
    is_weight = tensor.name is not None or key in reader.parts
    stays = tensor.changed_share < 1 if is_weight else not shard.reflinked
    height, width = matrix_shape(torch.Size(before.shape)) if is_weight else (before.size, 1)
    row_size = width * before.dtype.itemsize if is_weight else 1
    step = max(1, _BYTES_AT_ONCE // max(1, row_size))
    for first in range(0, height, step) if stays else ():
        count = min(step, height - first)
        if same:
            data = (shard if shard.reflinked else reader).raw(key, first * row_size, count * row_size)
            if is_weight:
                values = data.view(before.dtype).view(count, width)
                check_finite(values, str(reader.folder / reader.file_of(key)), key, torch.arange(first, first + count))
            if not shard.reflinked:
                shard.write(key, first * row_size, data)
        else:  # reading checks for NaN and infinity
            rows = torch.arange(first, first + count)
            shard.write_rows(key, rows, reader.key_rows(key, rows, torch.Size(before.shape)))
    if tensor.rows is not None:
        # Values are rounded once, to the dtype on disk. float64 is kept, so that unchanged elements keep every bit.
        dtype = before.dtype if same else torch.promote_types(before.dtype, torch.float32)

        def read(rows: Tensor) -> Tensor:
            return reader.rows(tensor.updated, rows).to(device, dtype)

        for rows, values in updates.changes(tensor.updated, read, tensor.rows, device):
            shard.write_rows(key, rows, values)
        reader.release(tensor.updated)
    return tensor.after.size
