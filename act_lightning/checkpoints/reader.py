"""Weights read from disk, whole tensors or some rows at a time."""

from __future__ import annotations

import mmap
import os
from contextlib import AbstractContextManager, ExitStack
from math import prod
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from act_lightning.checkpoints.model_spec import KeyMap, ModelSpec, read_model_spec
from act_lightning.checkpoints.models import untied_issue
from act_lightning.checkpoints.weight_files import check_finite, read_headers
from act_lightning.errors import ActError

_TIED_BYTES_AT_ONCE = 1 << 22


class CheckpointReader(AbstractContextManager["CheckpointReader"]):
    """The weights of a Hugging Face folder by the names that parameters have in the model.

    Opening reads config and headers only. Files are opened when first needed, and closed with the reader. Several
    threads may read. All values returned are copies, and are checked for NaN and infinity.

    Attributes:
        headers: The header of each file by its name.
        spec: The model's parameters and channels.
        keymap: Which key holds which parameter.
        bytes_read: How many bytes of tensors have been read so far.
    """

    keymap: KeyMap

    def __init__(self, folder: Path) -> None:
        """Read config and headers.

        Raises:
            ActError: As :func:`~act_lightning.checkpoints.weight_files.read_headers` and
                :func:`~act_lightning.checkpoints.model_spec.map_keys`; or tied weights are stored twice and differ.
        """
        self.folder = folder
        self.headers = read_headers(folder, str(folder))
        self.bytes_read = 0
        self._files = {key: file for file, header in self.headers.items() for key in header.entries}
        self._entries = {key: entry for header in self.headers.values() for key, entry in header.entries.items()}
        self._lock = Lock()
        self._open = ExitStack()
        self._descriptors: dict[str, int] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self.spec: ModelSpec = read_model_spec(folder, self.headers)
        assert self.spec.keymap is not None  # headers were given
        self.keymap = self.spec.keymap
        with self:
            self._check_ties()

    def close(self, *_: object) -> None:
        """Close all files; reading again opens them again."""
        self._open.close()
        self._descriptors.clear()
        self._maps.clear()

    __exit__ = close

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters in the model's order, tied ones under each of their names."""
        return tuple(self.keymap.keys)

    @property
    def stored_names(self) -> list[str]:
        """Every parameter under one name, tied ones once, in the order of the files."""
        return [self.keymap.names[key] for key in self._entries if key in self.keymap.names]

    def stored_keys(self, name: str) -> set[str]:
        """All keys under which the parameter ``name`` is stored: several for a tied one that is stored twice."""
        keys = self.keymap.keys
        return {keys[name], *(keys[alias] for group in self.keymap.ties if name in group for alias in group)}

    def read(self, name: str) -> Tensor:
        """The whole parameter ``name`` as stored.

        Raises:
            ActError: It holds NaN or infinity.
        """
        key = self.keymap.keys[name]
        values = self.raw(key).view(self._entries[key].dtype).view(self._entries[key].shape)
        check_finite(values, str(self.folder / self._files[key]), key)
        return values

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Some rows of the parameter ``name``; of a vector, some elements. Only these are read.

        ``index`` is int64 ``[rows]``, in any order; the result is ``[rows, …]`` as stored.

        Raises:
            ActError: One of these rows holds NaN or infinity.
            IndexError: The parameter has no such row.
        """
        key = self.keymap.keys[name]
        entry, file = self._entries[key], self._files[key]
        if len(index) > 0:  # bytes beyond the tensor's are those of its neighbors
            first, last = (int(bound) for bound in index.aminmax())
            if first < 0 or last >= entry.shape[0]:
                row = first if first < 0 else last
                raise IndexError(f"{name} has {entry.shape[0]} rows in {self.folder}, none of them number {row}")
        if len(index) > 0 and int(index[-1]) - int(index[0]) == len(index) - 1 and bool((index.diff() == 1).all()):
            width = prod(entry.shape[1:]) * entry.dtype.itemsize
            data = self.raw(key, int(index[0]) * width, len(index) * width)
            values = data.view(entry.dtype).view(len(index), *entry.shape[1:])
        else:  # from the mapped file, of which a page is read when one of its elements is
            descriptor = self._descriptor(file)
            with self._lock:
                if file not in self._maps:
                    # Copy-on-write, and never written: torch warns about read-only buffers.
                    mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
                    self._maps[file] = self._open.enter_context(mapped)
            start, count = self.headers[file].data_start + entry.start, entry.size // entry.dtype.itemsize
            tensor = torch.empty(0, dtype=entry.dtype)
            if count > 0:
                tensor = torch.frombuffer(self._maps[file], dtype=entry.dtype, count=count, offset=start)
            values = tensor.view(entry.shape)[index]
            with self._lock:
                self.bytes_read += values.nbytes
        check_finite(values, str(self.folder / file), key, index)
        return values

    def raw(self, key: str, start: int = 0, size: int | None = None) -> Tensor:
        """Bytes of the tensor stored under ``key``, parameter or not, unchecked: uint8 ``[size]``.

        They begin at byte ``start`` of the tensor; by default all that follow are read.
        """
        entry, file = self._entries[key], self._files[key]
        buffer = torch.empty(entry.size - start if size is None else size, dtype=torch.uint8)
        offset = self.headers[file].data_start + entry.start + start
        descriptor = self._descriptor(file)  # not the mapped file, whose pages would count as our memory
        rest = buffer.numpy().data
        while rest:  # one call reads 2 GiB at most
            count = os.preadv(descriptor, [rest], offset)
            if not count:
                raise EOFError("a weight file ended early: it changed while it was read")
            rest, offset = rest[count:], offset + count
        with self._lock:
            self.bytes_read += len(buffer)
        return buffer

    def release(self, name: str) -> None:
        """Free the memory that reading scattered rows of the parameter ``name`` has taken."""
        with self._lock:
            mapped = self._maps.get(self._files[self.keymap.keys[name]])
        if mapped is not None and hasattr(mapped, "madvise"):  # not on every platform
            mapped.madvise(mmap.MADV_DONTNEED)

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._descriptors:
                handle = self._open.enter_context((self.folder / file).open("rb", buffering=0))
                self._descriptors[file] = handle.fileno()
            return self._descriptors[file]

    def _check_ties(self) -> None:
        """Raise if a tied parameter is stored under several keys with different bytes."""
        for group in self.keymap.ties:
            first, *others = sorted({self.keymap.keys[name] for name in group})
            entry, step = self._entries[first], _TIED_BYTES_AT_ONCE
            for other in others:
                same_layout = (entry.code, entry.size) == (self._entries[other].code, self._entries[other].size)
                if not same_layout or not all(
                    torch.equal(self.raw(first, start, size), self.raw(other, start, size))
                    for start in range(0, entry.size, step)
                    for size in (min(step, entry.size - start),)
                ):
                    raise ActError(untied_issue(str(self.folder), [first, other]))
