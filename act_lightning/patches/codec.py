"""How the parts of a patch are packed: byte plane by byte plane, deflated where that is smaller.

The XOR of two close floating-point numbers is zero in the bytes of sign and exponent, and noise in the rest: split into
planes, the former shrink to nothing. Deflate with run lengths only (``Z_RLE``) packs such planes as small as a full
search does (0.41 of bf16 changes of 5 %, 0.15 of 0.3 %), five times as fast.
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np

from act_lightning.patches.stored import Words

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
