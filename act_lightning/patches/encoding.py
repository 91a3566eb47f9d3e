"""Stored tensors as matrices of unsigned integers, the region of a matrix that changes, and how changes are packed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from act_lightning.checkpoints.weight_files import DTYPES, Entry, read_headers
from act_lightning.errors import ActError, ConfigIssue

Codec = Literal["raw", "zlib"]
Words = NDArray[np.unsignedinteger]
"""Unsigned integers as wide as an element: equal numbers are equal bits, also for NaN and −0."""
_CHUNK = 1 << 24
_BYTES_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, seen as ``[height, width]`` words; a vector has width 1.

    Attributes:
        path: The file.
        start: Offset of its first byte in the file.
        entry: Its dtype and shape.
    """

    path: Path
    start: int
    entry: Entry

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Height and width; a column of bytes if the dtype is unknown."""
        return matrix_shape_of(self.entry.shape) if self.entry.code in DTYPES else (self.entry.size, 1)

    def blocks(self) -> Iterator[Words]:
        """Consecutive rows: ``[rows, width]``, about 32 MiB each.

        Raises:
            ActError: The file is shorter than its header says.
        """
        height, width = self.matrix_shape
        word = word_of(self.entry.code)
        row_bytes = max(width * word.itemsize, 1)
        step = max(_BYTES_AT_ONCE // row_bytes, 1)
        with self.path.open("rb") as file:
            file.seek(self.start)
            for first in range(0, height, step):
                rows = min(step, height - first)
                data = bytearray(rows * row_bytes)  # which torch takes without a copy; it warns about bytes
                if file.readinto(data) != len(data):
                    problem = "must not change while it is read, and ends too early"
                    hint = "Run again when it is complete."
                    raise ActError(ConfigIssue(str(self.path), self.path.name, problem, hint))
                yield np.frombuffer(data, word).reshape(rows, width)

    def read(self) -> Words:
        """The whole tensor: ``[height, width]``."""
        words = np.empty(self.matrix_shape, word_of(self.entry.code))
        first = 0
        for block in self.blocks():
            words[first : first + len(block)] = block
            first += len(block)
        return words


def word_of(code: str) -> np.dtype[np.unsignedinteger]:
    """The unsigned integer as wide as a dtype in safetensors' spelling; a byte if the dtype is unknown.

    >>> word_of("BF16")
    dtype('uint16')
    """
    return np.dtype(f"<u{DTYPES[code].itemsize if code in DTYPES else 1}")


def matrix_shape_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's shape as a matrix: the first dimension, and all others flattened; a vector has width 1.

    >>> matrix_shape_of((4, 3, 2)), matrix_shape_of((5,)), matrix_shape_of(())
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
        """The number of elements; where a row and a column cross, once."""
        rows, columns = int(self.rows.sum()), int(self.columns.sum())
        return rows * len(self.columns) + columns * (len(self.rows) - rows)

    def take(self, matrix: Words) -> Words:
        """The region's elements of ``matrix``, ``[size]``: the rows first, then the rest of the columns."""
        rest = matrix[np.ix_(~self.rows, self.columns)]
        return np.concatenate([matrix[self.rows].reshape(-1), rest.reshape(-1)])

    def xor_(self, matrix: Words, values: Words) -> None:
        """XOR ``values``, in the order of :meth:`take`, into the region's elements of ``matrix``, in place."""
        split = int(self.rows.sum()) * len(self.columns)
        matrix[self.rows] ^= values[:split].reshape(-1, len(self.columns))
        rest = np.ix_(~self.rows, self.columns)
        matrix[rest] ^= values[split:].reshape(matrix[rest].shape)

    def clear_(self, matrix: Words) -> None:
        """Set the region's elements of ``matrix`` to zero, in place."""
        matrix[self.rows] = 0
        matrix[:, self.columns] = 0

    def overlap(self, other: ChangedRegion) -> int:
        """The number of elements in both regions."""
        union = ChangedRegion(self.rows | other.rows, self.columns | other.columns)
        return self.size() + other.size() - union.size()


def changed_region(changes: Words) -> ChangedRegion:
    """The smallest of three regions that contain the nonzero elements of ``changes``, ``[height, width]``.

    Rows alone; columns alone; or the rows of which more than half has changed, and the columns of all other changes.
    """
    changed = changes != 0
    per_row = changed.sum(axis=1)
    no_rows, no_columns = np.zeros(changes.shape[0], np.bool_), np.zeros(changes.shape[1], np.bool_)
    dense = per_row * 2 > changes.shape[1]
    candidates = (
        ChangedRegion(per_row > 0, no_columns),
        ChangedRegion(no_rows, changed.any(axis=0)),
        ChangedRegion(dense, changed[~dense].any(axis=0)),
    )
    return min(candidates, key=ChangedRegion.size)


def byte_planes(values: Words) -> list[bytes]:
    """Byte 0 of every value, then byte 1, and so on, of ``[size]`` little-endian words.

    >>> byte_planes(np.array([0x4142, 0x4344], "<u2"))
    [b'BD', b'AC']
    """
    table = values.view(np.uint8).reshape(-1, values.itemsize)
    return [table[:, plane].tobytes() for plane in range(values.itemsize)]


def from_byte_planes(planes: list[bytes], word: np.dtype[np.unsignedinteger]) -> Words:
    """The inverse of :func:`byte_planes`."""
    table = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=-1)
    return table.reshape(-1).view(word)


def pack(data: bytes) -> tuple[Codec, bytes]:
    """``data``, deflated if that is smaller, and the codec used.

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
        ValueError: They are damaged, of another size, or packed by an unknown codec.
    """
    if codec not in ("raw", "zlib"):
        raise ValueError(f"packed by {codec!r}, which is not known")
    if codec == "zlib":
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(data, size + 1)  # never more: a few bytes can inflate to gigabytes
        except zlib.error as error:
            raise ValueError(f"damaged: {error}") from error
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes long where {size} are due")
    return data
