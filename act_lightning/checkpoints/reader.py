"""Weights read from disk a tensor, some rows or some columns at a time."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack
from math import prod
from pathlib import Path
from threading import Lock
from types import TracebackType

import torch
from torch import Tensor

from act_lightning.checkpoints.model_spec import KeyMap, ModelSpec, read_model_spec
from act_lightning.checkpoints.models import untied_issue
from act_lightning.checkpoints.weight_files import check_finite, read_headers
from act_lightning.errors import ActError

_TIED_BYTES_AT_ONCE = 1 << 22


class CheckpointReader:
    """The weights of a Hugging Face folder by the names that parameters have in the model.

    Opening reads configs and headers only. Files are opened when first needed, and closed with the reader, which is
    a context manager; several threads may read. Everything read is a copy and has been searched for NaN and infinity.

    Attributes:
        folder: The folder.
        headers: The header of each file by its name.
        described: The model's parameters and channels.
        keymap: Which key holds which parameter.
        bytes_read: How many bytes of tensors have been read so far; whole tensors where columns were asked for.
    """

    keymap: KeyMap

    def __init__(self, folder: Path) -> None:
        """Read config and headers.

        Raises:
            ActError: As :func:`~act_lightning.checkpoints.weight_files.require_weights` and
                :func:`~act_lightning.checkpoints.model_spec.map_keys`, or tied weights are stored twice and differ.
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
        self.described: ModelSpec = read_model_spec(folder, self._entries)
        assert self.described.keymap is not None
        self.keymap = self.described.keymap
        with self._open:
            self._check_ties()
        self._forget()

    def __enter__(self) -> CheckpointReader:
        """Nothing is opened yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        self.close()

    def close(self) -> None:
        """Close all files; reading again opens them again."""
        self._open.close()
        self._forget()

    def _forget(self) -> None:
        self._descriptors.clear()
        self._maps.clear()

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters in the model's order, tied ones under each of their names."""
        return tuple(self.keymap.keys)

    @property
    def stored_names(self) -> list[str]:
        """Every parameter under one name, tied ones once, in the order of the files."""
        keys = (key for header in self.headers.values() for key in header.entries)
        return [self.keymap.names[key] for key in keys if key in self.keymap.names]

    def key(self, name: str) -> str:
        """The checkpoint's key for the parameter ``name``."""
        return self.keymap.keys[name]

    def copies(self, name: str) -> set[str]:
        """All keys under which the parameter ``name`` is stored: several for a tied one that is stored twice."""
        return {self.key(name), *(self.key(alias) for group in self.keymap.ties if name in group for alias in group)}

    def file(self, name: str) -> Path:
        """The file that holds the parameter ``name``."""
        return self.folder / self._files[self.key(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the parameter ``name``."""
        return self._entries[self.key(name)].shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which the parameter ``name`` is stored."""
        return self._entries[self.key(name)].dtype

    def read(self, name: str) -> Tensor:
        """The whole parameter ``name`` as stored.

        Raises:
            ActError: It holds NaN or infinity.
        """
        key = self.key(name)
        values = self.raw(key).view(self.dtype(name)).view(self.shape(name))
        check_finite(values, str(self.file(name)), key)
        return values

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Some rows of the parameter ``name``; of a vector, some elements. Only these are read.

        Args:
            name: The parameter's name.
            index: ``[rows]`` int64, in any order.

        Returns:
            ``[rows, …]`` as stored.

        Raises:
            ActError: One of these rows holds NaN or infinity.
        """
        key = self.key(name)
        if _is_run(index):
            entry = self._entries[key]
            width = prod(entry.shape[1:]) * entry.dtype.itemsize
            data = self.raw(key, int(index[0]) * width, len(index) * width)
            values = data.view(entry.dtype).view(len(index), *entry.shape[1:])
        else:
            values = self._mapped(key)[index]
            self._count(values.nbytes)
        check_finite(values, str(self.file(name)), key, index)
        return values

    def columns(self, name: str, index: Tensor) -> Tensor:
        """Some columns of the matrix ``name``.

        Args:
            name: The parameter's name.
            index: ``[columns]`` int64, in any order.

        Returns:
            ``[rows, columns]`` as stored.

        Raises:
            ActError: One of these columns holds NaN or infinity.
        """
        key = self.key(name)
        values = self._mapped(key)[:, index]
        self._count(self._entries[key].size)
        check_finite(values, str(self.file(name)), key)
        return values

    def raw(self, key: str, start: int = 0, size: int | None = None) -> Tensor:
        """Bytes of the tensor that the checkpoint calls ``key``, parameter or not, unchecked.

        Args:
            key: The checkpoint's key.
            start: The first byte, counted from the tensor's own first.
            size: How many; by default all that follow.

        Returns:
            ``[size]`` uint8.
        """
        entry, file = self._entries[key], self._files[key]
        buffer = torch.empty(entry.size - start if size is None else size, dtype=torch.uint8)
        place = self.headers[file].data_start + entry.start + start
        _read_into(buffer.numpy().data, self._descriptor(file), place)  # a map's pages would count as our memory
        self._count(len(buffer))
        return buffer

    def release(self, name: str) -> None:
        """Give back the memory that reading scattered rows of the parameter ``name`` has taken."""
        with self._lock:
            mapped = self._maps.get(self._files[self.key(name)])
        if mapped is not None and hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._descriptors:
                handle = self._open.enter_context((self.folder / file).open("rb", buffering=0))
                self._descriptors[file] = handle.fileno()
            return self._descriptors[file]

    def _mapped(self, key: str) -> Tensor:
        """The tensor ``key`` as a view of its mapped file: a page is read when an element on it is taken."""
        entry, file = self._entries[key], self._files[key]
        descriptor = self._descriptor(file)
        with self._lock:
            if file not in self._maps:
                # A private copy on write, never written: torch warns about buffers that are read-only.
                mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
                self._maps[file] = self._open.enter_context(mapped)
        if entry.size == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        start, count = self.headers[file].data_start + entry.start, entry.size // entry.dtype.itemsize
        return torch.frombuffer(self._maps[file], dtype=entry.dtype, count=count, offset=start).view(entry.shape)

    def _check_ties(self) -> None:
        """A tied parameter may be stored under several keys, all with the same bytes."""
        for group in self.keymap.ties:
            first, *others = sorted({self.key(name) for name in group})
            for other in others:
                if not self._equal(first, other):
                    raise ActError(untied_issue(str(self.folder), [first, other]))

    def _equal(self, first: str, other: str) -> bool:
        size, step = self._entries[first].size, _TIED_BYTES_AT_ONCE
        if (self._entries[first].code, size) != (self._entries[other].code, self._entries[other].size):
            return False
        return all(
            torch.equal(self.raw(first, start, part), self.raw(other, start, part))
            for start in range(0, size, step)
            for part in (min(step, size - start),)
        )


def _is_run(index: Tensor) -> bool:
    """Whether ``index`` counts up by one, so that its rows lie side by side."""
    if len(index) == 0 or int(index[-1]) - int(index[0]) != len(index) - 1:
        return False
    return bool((index.diff() == 1).all())


def _read_into(buffer: memoryview, descriptor: int, offset: int) -> None:
    """Fill ``buffer``; one call takes 2 GiB at most, and a file that has been cut since gives less."""
    while buffer:
        size = os.preadv(descriptor, [buffer], offset)
        if not size:
            raise EOFError("a weight file ended early: it changed while it was read")
        buffer, offset = buffer[size:], offset + size
