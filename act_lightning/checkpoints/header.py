"""What a safetensors file says about itself: names, dtypes, shapes and places of its tensors."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from act_lightning.errors import ActError, Fault

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes a plain language model is stored in; what quantization adds (``F8_E4M3``, ``F4``) is left out."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        code: The dtype in safetensors' spelling, such as ``BF16``.
        shape: Its sizes.
        start: Its first byte, counted from the end of the header.
        end: The byte after its last.
    """

    code: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in torch; bytes for those of quantized weights, which are never read as numbers."""
        return DTYPES.get(self.code, torch.uint8)

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """All tensors of a file in the order of their bytes.

    Attributes:
        entries: Each tensor's entry by its key.
        metadata: Free text by free text, such as ``{"format": "pt"}``.
        data_start: The file's byte where the first tensor begins.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int

    @property
    def data_size(self) -> int:
        """The number of bytes of all tensors."""
        return max((entry.end for entry in self.entries.values()), default=0)

    def encode(self) -> bytes:
        """The bytes with which a file of these tensors opens: a length, JSON, and blanks up to a multiple of 8."""
        table: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        for key, entry in self.entries.items():
            table[key] = {"dtype": entry.code, "shape": entry.shape, "data_offsets": (entry.start, entry.end)}
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def cast(self, keys: Collection[str], dtype: torch.dtype) -> Header:
        """The header of the same tensors with those named by ``keys`` stored as ``dtype``, wider ones first."""
        code = _CODES[dtype]
        codes = {key: code if key in keys else entry.code for key, entry in self.entries.items()}
        order = sorted(
            codes, key=lambda key: -DTYPES.get(codes[key], torch.uint8).itemsize
        )  # keeps every tensor aligned, as the library does
        entries, start = {}, 0
        for key in order:
            shape = self.entries[key].shape
            end = start + (prod(shape) * dtype.itemsize if key in keys else self.entries[key].size)
            entries[key] = Entry(codes[key], shape, start, end)
            start = end
        return Header(entries, self.metadata, self.data_start)


def header_of(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Header:
    """The header of a new file of ``tensors``, given as dtype and shape by key; wider dtypes come first.

    Raises:
        ActError: A dtype that a plain language model is not stored in.
    """
    odd = [f"{key} {dtype}" for key, (dtype, _) in tensors.items() if dtype not in _CODES]
    if odd:
        rule = f"must have a dtype among {', '.join(DTYPES)}"
        raise ActError(Fault("weights", odd[:5], rule, "Give plain, unquantized weights."))
    entries, start = {}, 0
    for key, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
        end = start + prod(shape) * dtype.itemsize
        entries[key] = Entry(_CODES[dtype], shape, start, end)
        start = end
    return Header(entries, {"format": "pt"}, 0)


def read_header(path: Path) -> Header:
    """Read and check the header of the safetensors file at ``path``; its tensors are not read.

    Raises:
        ActError: The file is missing, is no safetensors file, or ends before its last tensor does.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 0 < length <= min(size - 8, _LONGEST_HEADER) else b""
        header = _parse(text, 8 + length)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ActError(_unreadable(path, f"must be a readable safetensors file ({error})")) from error
    if header.data_start + header.data_size != size:
        rule = (
            f"must be {header.data_start + header.data_size} bytes long by its header, and is {size}: it is truncated"
        )
        raise ActError(_unreadable(path, rule))
    return header


def read_opening(path: Path, header: Header) -> bytes:
    """The bytes before the first tensor of the file at ``path``, whose ``header`` is known."""
    with path.open("rb") as file:
        return file.read(header.data_start)


def _unreadable(path: Path, rule: str) -> Fault:
    remedy = "Download or copy it again (with git, `git lfs pull` fetches what a pointer file stands for)."
    return Fault(str(path), path.name, rule, remedy)


def _parse(text: bytes, data_start: int) -> Header:
    table = json.loads(text)
    metadata = table.pop("__metadata__", None) or {}
    entries = {key: Entry(item["dtype"], tuple(item["shape"]), *item["data_offsets"]) for key, item in table.items()}
    for key, entry in entries.items():
        if entry.code in DTYPES and prod(entry.shape) * entry.dtype.itemsize != entry.size:
            raise ValueError(f"{key} has {entry.size} bytes for shape {entry.shape} of {entry.code}")
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    place = 0
    for key, entry in ordered.items():
        if entry.start != place or entry.end < place:
            raise ValueError(f"{key} begins at byte {entry.start}, not where the tensor before it ends, at {place}")
        place = entry.end
    return Header(ordered, metadata, data_start)
