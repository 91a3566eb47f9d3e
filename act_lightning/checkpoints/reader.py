"""Weights read from disk, whole tensors or some rows at a time."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from io import FileIO
from math import prod
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from act_lightning.architecture import assign, parameter_names
from act_lightning.channels import as_matrix, matrix_shape
from act_lightning.checkpoints.adapters import LoraAdapter, has_adapter
from act_lightning.checkpoints.model_spec import KeyMap, ModelSpec, Piece, read_model_spec
from act_lightning.checkpoints.models import (
    load_generation_config,
    load_model,
    make_buffers,
    meta_model,
    untied_issue,
)
from act_lightning.checkpoints.weight_files import Entry, check_finite, read_headers
from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TIED_BYTES_AT_ONCE = 1 << 22
_FILLED_BYTES_AT_ONCE = 1 << 26
_LARGEST_GAP = 1 << 16  # bytes between two rows that are read rather than skipped
_MAX_OPEN_FILES = 4  # of a model, each with two descriptors at most; a system may allow 64 in all


@dataclass
class _OpenFile:
    """An open weight file; mapped, if scattered rows were read. ``users`` is the number of threads that read it."""

    handle: FileIO
    map: mmap.mmap | None = None
    users: int = 0


class CheckpointReader(AbstractContextManager["CheckpointReader"]):
    """The weights of a Hugging Face folder by the names that parameters have in the model, with an adapter applied.

    Opening reads config and headers only. Files are opened when first needed, and closed with the reader. Several
    threads may read. All values returned are copies, and are checked for NaN and infinity.

    Attributes:
        headers: The header of each file by its name.
        spec: The model's parameters and channels.
        keymap: Which key holds which parameter.
        adapter: The adapter that is joined to the weights, if any.
        bytes_read: How many bytes of tensors have been read so far.
    """

    keymap: KeyMap

    def __init__(self, folder: Path) -> None:
        """Read config and headers.

        Raises:
            ActError: As :func:`~act_lightning.checkpoints.weight_files.read_headers` and
                :func:`~act_lightning.checkpoints.model_spec.map_keys`; or tied weights are stored twice and differ; or
                an adapter does not fit.
        """
        self.folder = folder
        self.headers = read_headers(folder, str(folder))
        self.bytes_read = 0
        self._files = {key: file for file, header in self.headers.items() for key in header.entries}
        self._entries = {key: entry for header in self.headers.values() for key, entry in header.entries.items()}
        self._lock = Lock()
        self._first_rows: dict[str, Tensor] = {}
        self._open_files: dict[str, _OpenFile] = {}  # the one that was used last is the last
        self.spec: ModelSpec = read_model_spec(folder, self.headers)
        assert self.spec.keymap is not None  # headers were given
        self.keymap = self.spec.keymap
        self.adapter = read_adapter(folder, self.spec)
        with self:
            self._check_ties()

    def close(self, *_: object) -> None:
        """Close all files; reading again opens them again."""
        for opened in self._open_files.values():
            opened.handle.close()
        self._open_files.clear()

    __exit__ = close

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters in the model's order, tied ones under each of their names."""
        return tuple(name for name in self.spec.shapes if name in self.keymap.keys or name in self.keymap.pieces)

    @property
    def stored_names(self) -> list[str]:
        """Every parameter under one name, tied ones once, in the order of the files in which they begin."""
        names = (
            [self.keymap.names[key]] if key in self.keymap.names else self.parts.get(key, {}) for key in self._entries
        )
        return list(dict.fromkeys(name for of_key in names for name in of_key))

    @cached_property
    def parts(self) -> dict[str, dict[str, list[Piece]]]:
        """For each key of pieces of parameters, these by the parameter's name."""
        parts: dict[str, dict[str, list[Piece]]] = {}
        for name, pieces in self.keymap.pieces.items():
            for piece in pieces:
                parts.setdefault(piece.key, {}).setdefault(name, []).append(piece)
        return parts

    def stored_keys(self, name: str) -> set[str]:
        """All keys under which the parameter ``name`` is stored: of a tied one or one in pieces, several."""
        if name in self.keymap.pieces:
            return {piece.key for piece in self.keymap.pieces[name]}
        keys = self.keymap.keys
        return {keys[name], *(keys[alias] for group in self.keymap.ties if name in group for alias in group)}

    def read(self, name: str) -> Tensor:
        """The whole parameter ``name`` as stored.

        Raises:
            ActError: It holds NaN or infinity.
        """
        if name in self.keymap.pieces:
            shape = self.spec.shapes[name]
            return self.rows(name, torch.arange(matrix_shape(torch.Size(shape))[0])).view(shape)
        key = self.keymap.keys[name]
        values = self.raw(key).view(self._entries[key].dtype).view(self._entries[key].shape)
        check_finite(values, str(self.folder / self._files[key]), key)
        return values if self.adapter is None else self.adapter.rows(name, values)

    def buffers(self) -> dict[str, Tensor]:
        """All buffers that the model reads from a checkpoint and that this one holds, as stored; unchecked."""
        entries = {name: (key, self._entries[key]) for name, key in self.keymap.buffers.items()}
        return {name: self.raw(key).view(entry.dtype).view(entry.shape) for name, (key, entry) in entries.items()}

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Some rows of the parameter ``name``, seen as a matrix; of a vector, some elements. Only these are read.

        ``index`` is int64 ``[rows]``, in any order; the result is ``[rows, width]`` as stored, of a vector ``[rows]``.
        See :func:`~act_lightning.channels.matrix_shape`.

        Raises:
            ActError: One of these rows holds NaN or infinity.
            IndexError: The parameter has no such row.
        """
        if name in self.keymap.pieces:
            shape = torch.Size(self.spec.shapes[name])
            width = matrix_shape(shape)[1]
            values = torch.empty((len(index), width) if len(shape) > 1 else len(index), dtype=self.dtype_of(name))
            for key, positions, rows in self.places(name, index):
                size = prod(self._entries[key].shape)
                stored = torch.Size((size // width, width) if len(shape) > 1 else (size,))
                values[positions] = self.key_rows(key, rows, stored).to(values.dtype)
        else:
            key = self.keymap.keys[name]
            values = self.key_rows(key, index, torch.Size(self._entries[key].shape))
        return values if self.adapter is None else self.adapter.rows(name, values, index)

    def places(self, name: str, index: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Where rows of a parameter in pieces are stored.

        Args:
            name: The parameter.
            index: Numbers of some rows of it, seen as a matrix, int64 ``[rows]``.

        Yields:
            A key, the positions in ``index`` of those rows that belong to one piece, and their numbers in the stored
            tensor, seen as a matrix of the parameter's width; both int64.
        """
        pieces = self.keymap.pieces[name]
        numbers = torch.searchsorted(self._starts(name), index, right=True) - 1
        order = torch.argsort(numbers, stable=True)
        found, counts = torch.unique_consecutive(numbers[order], return_counts=True)
        for number, positions in zip(found.tolist(), order.split(counts.tolist()), strict=True):
            piece = pieces[number]
            yield piece.key, positions, index[positions] - piece.row + piece.stored_row

    def _starts(self, name: str) -> Tensor:
        if name not in self._first_rows:
            self._first_rows[name] = torch.tensor([piece.row for piece in self.keymap.pieces[name]])
        return self._first_rows[name]

    def entry_of(self, key: str) -> Entry:
        """Dtype and shape of the tensor that is stored under a key."""
        return self._entries[key]

    def file_of(self, key: str) -> str:
        """The name of the file that holds a key."""
        return self._files[key]

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype in which the parameter ``name`` is stored; of pieces, the widest."""
        return reduce(torch.promote_types, (self._entries[key].dtype for key in self.stored_keys(name)))

    def key_rows(self, key: str, index: Tensor, shape: torch.Size) -> Tensor:
        """Some rows of a stored tensor, seen as a matrix of ``shape``, as :meth:`rows` of a parameter."""
        entry, file = self._entries[key], self._files[key]
        height, width = matrix_shape(shape)
        if len(index) > 0:  # bytes beyond the tensor's are those of its neighbors
            first, last = (int(bound) for bound in index.aminmax())
            if first < 0 or last >= height:
                row = first if first < 0 else last
                raise IndexError(f"{key} has {height} rows in {self.folder}, none of them number {row}")
        if len(index) > 0 and int(index[-1]) - int(index[0]) == len(index) - 1 and bool((index.diff() == 1).all()):
            size = width * entry.dtype.itemsize
            values = self.raw(key, int(index[0]) * size, len(index) * size).view(entry.dtype)
            values = values.view(len(index), width) if len(shape) > 1 else values
        else:  # from the mapped file, of which a page is read when one of its elements is
            start, count = self.headers[file].data_start + entry.start, entry.size // entry.dtype.itemsize
            tensor = torch.empty(0, dtype=entry.dtype)
            with self._opened(file) as opened:
                with self._lock:
                    if opened.map is None:  # copy-on-write, and never written: torch warns about read-only buffers
                        opened.map = mmap.mmap(opened.handle.fileno(), 0, access=mmap.ACCESS_COPY)
                        if hasattr(opened.map, "madvise"):  # not on every platform
                            opened.map.madvise(mmap.MADV_RANDOM)  # or the kernel reads megabytes around each page
                _read_ahead(opened.handle, start, index, width * entry.dtype.itemsize)
                if count > 0:
                    tensor = torch.frombuffer(opened.map, dtype=entry.dtype, count=count, offset=start)
                values = as_matrix(tensor.view(shape))[index]
            with self._lock:
                self.bytes_read += values.nbytes
        check_finite(values, str(self.folder / file), key, index)
        return values

    @torch.no_grad()
    def fill(self, name: str, values: Tensor, first_row: int = 0) -> None:
        """Write the parameter ``name`` from ``first_row`` of its first dimension on to ``values``, 64 MiB at a time.

        ``values`` is ``[rows, …]`` of any floating dtype, on any device, and contiguous.

        Raises:
            ActError: One of these rows holds NaN or infinity.
        """
        first, matrix = first_row * values.shape[1:-1].numel(), as_matrix(values)
        at_once = max(1, _FILLED_BYTES_AT_ONCE // max(1, matrix[:1].nbytes))
        for start in range(0, len(matrix), at_once):
            stop = min(start + at_once, len(matrix))
            rows = self.rows(name, torch.arange(first + start, first + stop))
            matrix[start:stop] = rows.to(values.device).to(values.dtype)

    def raw(self, key: str, start: int = 0, size: int | None = None) -> Tensor:
        """Bytes of the tensor stored under ``key``, parameter or not, unchecked and without adapter: uint8 ``[size]``.

        They begin at byte ``start`` of the tensor; by default all that follow are read.
        """
        entry, file = self._entries[key], self._files[key]
        buffer = torch.empty(entry.size - start if size is None else size, dtype=torch.uint8)
        offset = self.headers[file].data_start + entry.start + start
        rest = buffer.numpy().data
        with self._opened(file) as opened:  # not the mapped file, whose pages would count as our memory
            while rest:  # one call reads 2 GiB at most
                count = os.preadv(opened.handle.fileno(), [rest], offset)
                if not count:
                    problem, hint = "must not change while it is read, and ends too early", "Run again."
                    raise ActError(ConfigIssue(str(self.folder / file), key, problem, hint))
                rest, offset = rest[count:], offset + count
        with self._lock:
            self.bytes_read += len(buffer)
        return buffer

    def release(self, name: str) -> None:
        """Free the memory that reading scattered rows of the parameter ``name`` has taken."""
        for file in {self._files[key] for key in self.stored_keys(name)}:
            with self._lock:
                opened = self._open_files.get(file)
            mapped = None if opened is None else opened.map
            if mapped is not None and hasattr(mapped, "madvise"):  # not on every platform
                mapped.madvise(mmap.MADV_DONTNEED)

    @contextmanager
    def _opened(self, file: str) -> Iterator[_OpenFile]:
        """An open file, and close those that were not used for the longest time, so that few are open at once."""
        with self._lock:
            opened = self._open_files.pop(file, None) or _OpenFile((self.folder / file).open("rb", buffering=0))
            opened.users += 1
            self._open_files[file] = opened
            idle = [name for name, other in self._open_files.items() if not other.users]
            for name in idle[: max(len(self._open_files) - _MAX_OPEN_FILES, 0)]:
                self._open_files.pop(name).handle.close()
        try:
            yield opened
        finally:
            with self._lock:
                opened.users -= 1

    def _check_ties(self) -> None:
        """Raise if a tied parameter is stored under several keys with different bytes."""
        for group in self.keymap.ties:
            first, *others = sorted({self.keymap.keys[name] for name in group if name in self.keymap.keys}) or [""]
            if not others:
                continue
            entry, step = self._entries[first], _TIED_BYTES_AT_ONCE
            for other in others:
                same_layout = (entry.code, entry.size) == (self._entries[other].code, self._entries[other].size)
                if not same_layout or not all(
                    torch.equal(self.raw(first, start, size), self.raw(other, start, size))
                    for start in range(0, entry.size, step)
                    for size in (min(step, entry.size - start),)
                ):
                    raise ActError(untied_issue(str(self.folder), [first, other]))


def _read_ahead(file: FileIO, start: int, index: Tensor, row_size: int) -> None:
    """Ask the kernel to read some rows (int64) of a matrix that begins at ``start``, all at once, and nothing else."""
    if not hasattr(os, "posix_fadvise") or len(index) == 0:  # not on every platform
        return
    rows = index.unique()
    gaps = ((rows.diff() - 1) * row_size > _LARGEST_GAP).nonzero().squeeze(1)
    for first, last in zip([0, *(gaps + 1).tolist()], [*gaps.tolist(), -1], strict=True):
        offset, end = start + int(rows[first]) * row_size, start + (int(rows[last]) + 1) * row_size
        os.posix_fadvise(file.fileno(), offset, end - offset, os.POSIX_FADV_WILLNEED)


def read_adapter(folder: Path, spec: ModelSpec) -> LoraAdapter | None:
    """The adapter that is joined to the model in ``folder``, whose spec is given; ``None`` without one.

    Raises:
        ActError: It does not fit the model.
    """
    if not has_adapter(folder):
        return None
    return LoraAdapter(folder, spec.shapes, spec.ties, spec.vocabulary, spec.channels)


def model_without_weights(reader: CheckpointReader, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The causal language model of a checkpoint: its parameters on the meta device, its buffers on ``device``.

    Raises:
        ActError: As :func:`~act_lightning.checkpoints.models.load_config` and ``load_generation_config``.
    """
    model = meta_model(reader.folder, dtype)
    model.name_or_path = str(reader.folder)
    model.generation_config = load_generation_config(reader.folder)  # it may name more tokens that end an answer
    make_buffers(model, device, reader.buffers())
    model.train(False)
    return model


def load_on_device(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The same as :func:`~act_lightning.checkpoints.models.load_model`, without a copy in the host's memory.

    On the CPU, weights that are stored in ``dtype`` stay memory-mapped, and processes share them. Another device is
    given 64 MiB at a time, and casts.

    Raises:
        ActError: As ``load_model``, or for a model whose parameters transformers makes of several tensors.
    """
    if device.type == "cpu":
        model = load_model(folder, dtype)
        if has_adapter(folder):
            with CheckpointReader(folder) as reader:
                for name in reader.adapter.names if reader.adapter else ():
                    parameter = model.get_parameter(name)
                    values = reader.read(name).to(parameter.dtype)
                    assign(model, name, nn.Parameter(values, requires_grad=parameter.requires_grad))
        return model
    # A Trainer builds modules with its device as torch's default, but files are read by the host.
    with torch.device("cpu"), CheckpointReader(folder) as reader:
        model = model_without_weights(reader, dtype, device)
        for parameter, names in parameter_names(model).items():
            values = torch.empty_like(parameter, device=device)
            reader.fill(names[0], values)
            filled = nn.Parameter(values, requires_grad=parameter.requires_grad)
            for name in names:
                assign(model, name, filled)
    return model
