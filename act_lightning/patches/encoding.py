"""Stored tensors as grids of whole numbers, and how parts of a patch are packed."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from act_lightning.checkpoints.weight_files import DTYPES, Entry, read_headers
from act_lightning.errors import ActError, ConfigIssue

Codec = Literal["raw", "zlib"]
_CHUNK = 1 << 24


def pack(data: bytes) -> tuple[Codec, bytes]:
    """``data``, deflated if that is smaller, and which of the two it is.

    >>> pack(bytes(1000))[0], pack(b"ab")[0]
    ('zlib', 'raw')
    """
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    view = memoryview(data)
    parts = [deflate.compress(view[start : start + _CHUNK]) for start in range(0, len(view), _CHUNK)]
    packed = b"".join([*parts, deflate.flush()])
    return ("zlib", packed) if len(packed) < len(data) else ("raw", data)


def unpack(codec: str, data: bytes, size: int) -> bytes:
    """The ``size`` bytes that :func:`pack` was given.

    Raises:
        ValueError: They are damaged, of another size, or packed in a way that is not known.
    """
    if codec not in ("raw", "zlib"):
        raise ValueError(f"packed by {codec!r}, which is not known")
    if codec == "zlib":
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(data, size + 1)  # never more: a few bytes can stand for gigabytes
        except zlib.error as error:
            raise ValueError(f"damaged: {error}") from error
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes long where {size} are due")
    return data


def planes(values: Words) -> list[bytes]:
    """Byte 0 of every value, then byte 1, and so on, of ``[size]`` little-endian words.

    >>> planes(np.array([0x4142, 0x4344], "<u2"))
    [b'BD', b'AC']
    """
    table = values.view(np.uint8).reshape(-1, values.itemsize)
    return [table[:, plane].tobytes() for plane in range(values.itemsize)]


def from_planes(parts: list[bytes], word: np.dtype[np.unsignedinteger]) -> Words:
    """The inverse of :func:`planes`."""
    table = np.stack([np.frombuffer(part, np.uint8) for part in parts], axis=-1)
    return table.reshape(-1).view(word)


Words = NDArray[np.unsignedinteger]
"""Unsigned integers as wide as an element, so that equal bits are equal numbers: NaN and −0 too."""
_BYTES_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, seen as ``[height, width]`` words; a vector has width 1.

    Attributes:
        path: The file.
        start: The byte of the file where it begins.
        entry: Its dtype and shape.
    """

    path: Path
    start: int
    entry: Entry

    @property
    def word(self) -> np.dtype[np.unsignedinteger]:
        """An unsigned integer of the size of an element; a byte where the dtype is not known."""
        return word_of(self.entry.code)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width; bytes below each other where the dtype is not known."""
        return grid_of(self.entry.shape) if self.entry.code in DTYPES else (self.entry.size, 1)

    def blocks(self) -> Iterator[Words]:
        """Consecutive rows: ``[rows, width]``, of some 32 MiB each.

        Raises:
            ActError: The file has become shorter than its header says.
        """
        height, width = self.grid
        bytes_a_row = max(width * self.word.itemsize, 1)
        step = max(_BYTES_AT_ONCE // bytes_a_row, 1)
        with self.path.open("rb") as file:
            file.seek(self.start)
            for first in range(0, height, step):
                rows = min(step, height - first)
                data = bytearray(rows * bytes_a_row)  # which torch takes without a copy; bytes it warns about
                if file.readinto(data) != len(data):
                    problem = "must not change while it is read, and ends too early"
                    raise ActError(
                        ConfigIssue(str(self.path), self.path.name, problem, "Run again when it is complete.")
                    )
                yield np.frombuffer(data, self.word).reshape(rows, width)

    def read(self) -> Words:
        """The whole tensor: ``[height, width]``."""
        words = np.empty(self.grid, self.word)
        first = 0
        for block in self.blocks():
            words[first : first + len(block)] = block
            first += len(block)
        return words


def word_of(code: str) -> np.dtype[np.unsignedinteger]:
    """The unsigned integer as wide as a dtype in safetensors' spelling.

    >>> word_of("BF16")
    dtype('uint16')
    """
    return np.dtype(f"<u{DTYPES[code].itemsize if code in DTYPES else 1}")


def grid_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """The sizes of a tensor seen as a matrix: the first dimension, and all others together; a vector has width 1.

    >>> grid_of((4, 3, 2)), grid_of((5,)), grid_of(())
    ((4, 6), (5, 1), (1, 1))
    """
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (prod(shape), 1)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by its key, in the order of the files.

    Raises:
        ActError: Weights are missing or truncated.
    """
    return {
        key: StoredTensor(folder / file, header.data_start + entry.start, entry)
        for file, header in read_headers(folder, str(folder)).items()
        for key, entry in header.entries.items()
    }


def weights_digest(entries: Mapping[str, Entry], hashes: Mapping[str, str]) -> str:
    """SHA-256 of all weights, whatever files they are dealt to.

    It is taken over the JSON list of ``[key, dtype, shape, SHA-256 of the tensor's bytes]`` of every tensor, sorted by
    key, without blanks. All bytes of all tensors stand behind it.

    Args:
        entries: Dtype and shape of every tensor by its key.
        hashes: SHA-256 of every tensor's bytes, as hexadecimal digits.

    Returns:
        Hexadecimal digits.

    >>> entry = Entry("U8", (1,), 0, 1)
    >>> weights_digest({"a": entry}, {"a": hashlib.sha256(b"x").hexdigest()})[:8]
    'bca60bc3'
    """
    listing = [[key, entries[key].code, list(entries[key].shape), hashes[key]] for key in sorted(entries)]
    return hashlib.sha256(json.dumps(listing, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class ChangedRegion:
    """Whole rows and whole columns of a ``[height, width]`` matrix.

    Channels are rows of most matrices and columns of embeddings; a tied matrix can have both.

    Attributes:
        rows: Bool ``[height]``.
        columns: Bool ``[width]``.
    """

    rows: NDArray[np.bool_]
    columns: NDArray[np.bool_]

    def size(self) -> int:
        """The number of elements covered; where a row and a column cross, once."""
        rows, columns = int(self.rows.sum()), int(self.columns.sum())
        return rows * len(self.columns) + columns * (len(self.rows) - rows)

    def take(self, matrix: Words) -> Words:
        """The covered elements of ``matrix``, ``[size]``: the rows first, then the rest of the columns."""
        rest = matrix[np.ix_(~self.rows, self.columns)]
        return np.concatenate([matrix[self.rows].reshape(-1), rest.reshape(-1)])

    def xor_(self, matrix: Words, values: Words) -> None:
        """XOR ``values``, in the order of :meth:`take`, into the covered elements of ``matrix``, in place."""
        split = int(self.rows.sum()) * len(self.columns)
        matrix[self.rows] ^= values[:split].reshape(-1, len(self.columns))
        rest = np.ix_(~self.rows, self.columns)
        matrix[rest] ^= values[split:].reshape(matrix[rest].shape)

    def clear_(self, matrix: Words) -> None:
        """Set the covered elements of ``matrix`` to zero, in place."""
        matrix[self.rows] = 0
        matrix[:, self.columns] = 0

    def meets(self, other: ChangedRegion) -> int:
        """The number of elements that both cover."""
        both = ChangedRegion(self.rows | other.rows, self.columns | other.columns)
        return self.size() + other.size() - both.size()


def changed_region(changes: Words) -> ChangedRegion:
    """The smallest of three covers of the nonzero elements of ``changes``, ``[height, width]``.

    Rows alone; columns alone; or the rows of which more than half has changed, and the columns of all other changes.
    """
    changed = changes != 0
    per_row = changed.sum(axis=1)
    no_rows, no_columns = np.zeros(changes.shape[0], np.bool_), np.zeros(changes.shape[1], np.bool_)
    heavy = per_row * 2 > changes.shape[1]
    candidates = (
        ChangedRegion(per_row > 0, no_columns),
        ChangedRegion(no_rows, changed.any(axis=0)),
        ChangedRegion(heavy, changed[~heavy].any(axis=0)),
    )
    return min(candidates, key=ChangedRegion.size)
