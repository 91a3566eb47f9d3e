"""Weights read from disk a tensor, some rows or some columns at a time."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from act_lightning.checkpoints.finite import check_finite
from act_lightning.checkpoints.models import meta_model
from act_lightning.checkpoints.names import map_keys, untied_fault
from act_lightning.checkpoints.shards import read_headers
from act_lightning.errors import ActError


class CheckpointReader:
    """The weights of a Hugging Face folder by the names that parameters have in the model.

    Opening reads configs and headers only. Files are opened when first needed, and closed with the reader, which is
    a context manager. Everything read is a copy and has been searched for NaN and infinity.

    Attributes:
        folder: The folder.
        headers: The header of each file by its name.
        keymap: Which key holds which parameter.
        bytes_read: How many bytes of tensors have been read so far; whole tensors where columns were asked for.
    """

    def __init__(self, folder: Path) -> None:
        """Read config and headers.

        Raises:
            ActError: As :func:`~act_lightning.checkpoints.shards.require_weights` and
                :func:`~act_lightning.checkpoints.names.map_keys`, or tied weights are stored twice and differ.
        """
        self.folder = folder
        self.headers = read_headers(folder, str(folder))
        self.bytes_read = 0
        self._files = {key: file for file, header in self.headers.items() for key in header.entries}
        self._entries = {key: entry for header in self.headers.values() for key, entry in header.entries.items()}
        self._maps: dict[str, mmap.mmap] = {}
        self.keymap = map_keys(meta_model(folder), self._entries, str(folder))
        self._check_ties()

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
        while self._maps:
            self._maps.popitem()[1].close()

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters in the model's order, tied ones under each of their names."""
        return tuple(self.keymap.keys)

    def key(self, name: str) -> str:
        """The checkpoint's key for the parameter ``name``."""
        return self.keymap.keys[name]

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
        values = self._mapped(self.key(name))[index]
        self.bytes_read += values.nbytes
        check_finite(values, str(self.file(name)), self.key(name), index)
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
        self.bytes_read += self._entries[key].size
        check_finite(values, str(self.file(name)), key)
        return values

    def raw(self, key: str) -> Tensor:
        """The bytes of the tensor that the checkpoint calls ``key``, parameter or not, unchecked: ``[bytes]`` uint8."""
        entry, file = self._entries[key], self._files[key]
        buffer = torch.empty(entry.size, dtype=torch.uint8)
        with (self.folder / file).open("rb") as handle:  # not through the map: its pages would count as our memory
            handle.seek(self.headers[file].data_start + entry.start)
            handle.readinto(buffer.numpy().data)
        self.bytes_read += entry.size
        return buffer

    def _mapped(self, key: str) -> Tensor:
        """The tensor ``key`` as a view of its mapped file: a page is read when an element on it is taken."""
        entry, file = self._entries[key], self._files[key]
        if file not in self._maps:
            with (self.folder / file).open("rb") as handle:
                # A private copy on write, never written: torch warns about buffers that are read-only.
                self._maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        if entry.size == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        start, count = self.headers[file].data_start + entry.start, entry.size // entry.dtype.itemsize
        return torch.frombuffer(self._maps[file], dtype=entry.dtype, count=count, offset=start).view(entry.shape)

    def _check_ties(self) -> None:
        """A tied parameter may be stored under several keys, all with the same bytes."""
        for group in self.keymap.ties:
            first, *others = sorted({self.key(name) for name in group})
            for other in others:
                if not torch.equal(self._mapped(first), self._mapped(other)):
                    raise ActError(untied_fault(str(self.folder), [first, other]))
