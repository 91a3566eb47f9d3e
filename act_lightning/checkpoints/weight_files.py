"""The weight files of a Hugging Face folder: safetensors headers, checks of their values, and the model's identity."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from act_lightning.checkpoints.files import parse_json, read_json
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

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
"""Dtypes of plain language models by their safetensors code; those of quantized weights (``F8_E4M3``) are left out."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = ".adapter"
"""The folder of an adapter that is joined to the base model around it."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
AUX_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "NOTICE*",
)
"""Files that an export copies byte for byte. The target's card and its records of other runs are not among them."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf")
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_SAMPLE_BYTES = 64 * 1024
HASHING_THREADS = 4
"""In how many files SHA-256 is computed at once; hashlib lets other threads run meanwhile."""
_CLOCK_TICK = 1_000_000_000  # nanoseconds; file systems' clocks are finer
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file.

    Attributes:
        code: The dtype in safetensors' spelling, such as ``BF16``.
        shape: The tensor's shape.
        start: Offset of its first byte from the end of the header.
        end: Offset of the byte after its last.
    """

    code: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype; uint8 for quantized weights, which are never read as numbers."""
        return DTYPES.get(self.code, torch.uint8)

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """All tensors of a safetensors file in the order of their bytes.

    Attributes:
        entries: The tensors by key.
        metadata: Free text by free text, such as ``{"format": "pt"}``.
        data_start: Offset of the first tensor in the file.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int

    @property
    def data_size(self) -> int:
        """The number of bytes of all tensors."""
        return max((entry.end for entry in self.entries.values()), default=0)

    def encode(self) -> bytes:
        """The first bytes of a file with these tensors: a length, JSON, and blanks up to a multiple of 8."""
        table: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        for key, entry in self.entries.items():
            table[key] = {"dtype": entry.code, "shape": entry.shape, "data_offsets": (entry.start, entry.end)}
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def cast(self, keys: Collection[str], dtype: torch.dtype) -> Header:
        """The header of the same tensors with those in ``keys`` stored as ``dtype``."""
        tensors = {
            key: (_CODES[dtype], entry.shape, prod(entry.shape) * dtype.itemsize)
            if key in keys
            else (entry.code, entry.shape, entry.size)
            for key, entry in self.entries.items()
        }
        return Header(_lay_out(tensors), self.metadata, self.data_start)


def new_header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Header:
    """The header of a new file with ``tensors``, given as dtype and shape by key; wider dtypes come first.

    Raises:
        ActError: A dtype is not among :data:`DTYPES`.
    """
    unknown = [f"{key} {dtype}" for key, (dtype, _) in tensors.items() if dtype not in _CODES]
    if unknown:
        problem = f"must have a dtype among {', '.join(DTYPES)}"
        raise ActError(ConfigIssue("weights", unknown[:5], problem, "Give plain, unquantized weights."))
    sized = {key: (_CODES[dtype], shape, prod(shape) * dtype.itemsize) for key, (dtype, shape) in tensors.items()}
    return Header(_lay_out(sized), {"format": "pt"}, 0)


def _lay_out(tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> dict[str, Entry]:
    """Place tensors, given as code, shape and bytes: wider dtypes first, as safetensors does, which aligns them all."""
    entries, start = {}, 0
    by_width = sorted(tensors.items(), key=lambda item: -DTYPES.get(item[1][0], torch.uint8).itemsize)
    for key, (code, shape, size) in by_width:
        entries[key] = Entry(code, shape, start, start + size)
        start += size
    return entries


def read_header(path: Path) -> Header:
    """Read and check the header of the safetensors file at ``path``; its tensors are not read.

    Raises:
        ActError: The file is missing or truncated, or not a safetensors file.
    """
    hint = "Download or copy it again (with git, `git lfs pull` fetches what a pointer file stands for)."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 0 < length <= min(size - 8, _MAX_HEADER_BYTES) else b""
        table = parse_json(text, unique_keys=True)
        metadata = table.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata must be text by text")
        "".join(
            (*table, *metadata, *metadata.values())
        ).encode()  # halves of surrogate pairs could not be written again
        entries = {key: _read_entry(key, item) for key, item in table.items()}
        entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
        end = 0
        for key, entry in entries.items():
            if entry.code in DTYPES and prod(entry.shape) * entry.dtype.itemsize != entry.size:
                raise ValueError(f"{key} has {entry.size} bytes for shape {entry.shape} of {entry.code}")
            if entry.start != end or entry.end < end:
                raise ValueError(f"{key} begins at byte {entry.start}, not where the tensor before it ends, at {end}")
            end = entry.end
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"must be a readable safetensors file ({error})"
        raise ActError(ConfigIssue(str(path), path.name, problem, hint)) from error
    expected = 8 + length + end
    if expected != size:
        problem = f"must be {expected} bytes long by its header, and is {size}: it is truncated"
        raise ActError(ConfigIssue(str(path), path.name, problem, hint))
    return Header(entries, metadata, 8 + length)


def weights_digest(entries: Mapping[str, Entry], hashes: Mapping[str, str]) -> str:
    """SHA-256 of all bytes of all weights, independent of sharding.

    It is the digest of the JSON list of ``[key, dtype, shape, SHA-256 of the tensor's bytes]`` of every tensor, sorted
    by key, without blanks.

    Args:
        entries: Dtype and shape of every tensor by its key.
        hashes: SHA-256 of every tensor's bytes, as hexadecimal digits.

    >>> entry = Entry("U8", (1,), 0, 1)
    >>> weights_digest({"a": entry}, {"a": hashlib.sha256(b"x").hexdigest()})[:8]
    'bca60bc3'
    """
    listing = [[key, entries[key].code, list(entries[key].shape), hashes[key]] for key in sorted(entries)]
    return hashlib.sha256(json.dumps(listing, separators=(",", ":")).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The :func:`weights_digest` of tensors in memory, as they are saved."""
    entries = new_header({key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}).entries
    hashes = {}
    for key, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        hashes[key] = hashlib.sha256(values.numpy().data).hexdigest()
    return weights_digest(entries, hashes)


def _read_entry(key: str, item: Mapping[str, Any]) -> Entry:
    """A tensor of a header; ValueError unless every number is a natural one."""
    code, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    numbers = [*shape, *offsets]
    if (
        not isinstance(code, str)
        or not code.isascii()
        or len(offsets) != 2
        or any(type(number) is not int for number in numbers)
    ):
        raise ValueError(f"{key} must have a dtype, a shape and two offsets in whole numbers")
    if min(numbers) < 0:
        raise ValueError(f"{key} has a negative size or offset")
    return Entry(code, tuple(shape), *offsets)


def is_weightless(folder: Path) -> bool:
    """Whether ``folder`` holds no weights of any format; a config alone is enough for a plan."""
    return not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", INDEX, *_OTHER_FORMATS))


def read_headers(folder: Path, setting: str = "model") -> dict[str, Header]:
    """The header of every weight file of ``folder`` by file name, in the order of their names.

    ``setting`` is the one that names the folder, for messages.

    Raises:
        ActError: The folder has no safetensors files, or files are missing or truncated; all issues in one error.
    """
    index = {} if (folder / SINGLE).is_file() else _read_index(folder, setting)  # transformers prefers a single file
    headers: dict[str, Header] = {}
    issues: list[ConfigIssue] = []
    for file in sorted({*index.values()}) or [SINGLE]:
        try:
            headers[file] = read_header(folder / file)
        except ActError as error:
            issues.extend(error.issues)
    raise_if_any(issues)
    missing = [key for key, file in index.items() if key not in headers[file].entries]
    if missing:
        hint = "The shards belong to another model: download all files again."
        problem = "must find every tensor in the file it names"
        raise ActError(ConfigIssue(str(folder / INDEX), missing[:5], problem, hint))
    return headers


def _read_index(folder: Path, setting: str) -> dict[str, str]:
    """The file of every key, by the folder's index."""
    path = folder / INDEX
    if not path.is_file():
        other_formats = sorted(file.name for pattern in _OTHER_FORMATS for file in folder.glob(pattern))
        problem, hint = "must hold weights", f"Put {SINGLE}, or the files of {INDEX}, into the folder."
        if other_formats:
            problem = f"must hold safetensors weights, and holds only {', '.join(other_formats[:3])}"
            hint = "Convert them to safetensors; or write bin: before the model's name to have pytorch_model.bin read."
        raise ActError(ConfigIssue(setting, str(folder), problem, hint))
    try:
        index = dict(read_json(path)["weight_map"])
        if not index or any(Path(file).name != file for file in index.values()):
            raise ValueError("it names no file, or one outside the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"must be a JSON index with a weight_map ({error})"
        raise ActError(ConfigIssue(str(path), path.name, problem, "Download or copy it again.")) from error
    return index


def aux_files(folder: Path) -> Iterator[Path]:
    """The files of ``folder`` that match :data:`AUX_FILES`; never Python code."""
    for pattern in AUX_FILES:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file() and path.suffix != ".py")


def link_issues(folder: Path, setting: str) -> list[ConfigIssue]:
    """Symbolic links to files that leave a model's ``folder``, which a stranger may have made; none is followed.

    In the hub's cache, the files of a snapshot are links to the blobs of the same repository.
    """
    places = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        places.append(folder.resolve().parents[1] / "blobs")
    patterns = ("*", *(pattern for pattern in AUX_FILES if "/" in pattern))
    files = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    links = (path for path in files if path.is_symlink() or path.parent.is_symlink())
    outside = [path for path in links if not any(path.resolve().is_relative_to(place) for place in places)]
    if not outside:
        return []
    problem = f"must hold its own files, and {outside[0].name} is a link that leads out of it"
    hint = "Copy what it points to in its place, or name the folder that holds the files."
    return [ConfigIssue(setting, str(folder), problem, hint)]


def check_finite(values: Tensor, location: str, name: str, index: Tensor | None = None) -> None:
    """Raise if ``values`` (any shape) has a floating dtype and holds NaN or infinity.

    If these are only some rows of the tensor, ``index`` has their positions in it: int64 ``[rows]``.

    Raises:
        ActError: Naming location, tensor and the first row with such a value.
    """
    number = first_row_not_finite(values)
    if number is None:
        return
    row = number if index is None else int(index[number])
    problem = f"must be finite, and row {row} holds NaN or infinity"
    hint = "The weights are damaged: download, copy or train them again."
    raise ActError(ConfigIssue(location, name, problem, hint))


def first_row_not_finite(values: Tensor) -> int | None:
    """The number of the first row that holds NaN or infinity; ``None`` if all is finite, or no floating dtype.

    ``aminmax`` propagates NaN; in bfloat16 it is a hundred times faster than ``isfinite``, and makes no copy.
    """
    values = values.detach()
    if values.numel() == 0 or not values.is_floating_point():
        return None
    if all(math.isfinite(extreme) for extreme in map(float, torch.aminmax(values))):
        return None
    rows = values.reshape(len(values) if values.ndim else 1, -1)
    return next(i for i, row in enumerate(rows) if not torch.isfinite(row).all())


@dataclass(frozen=True)
class Identity:
    """What tells one model's weights from another's: a quick check, and the SHA-256 of whole files if they were read.

    Attributes:
        digest: The quick check: SHA-256 over headers, file sizes and the first 64 KiB of every tensor, as hexadecimal
            digits. A copy in another folder has the same digest; so has one that differs beyond these bytes.
        commit: The hub commit, if the folder lies in the hub's cache; not part of the digest.
        files: The size in bytes of each weight file; empty for weights in memory.
        sha256: The SHA-256 of each whole file, if all bytes were read.
    """

    digest: str
    commit: str | None
    files: Mapping[str, int]
    sha256: Mapping[str, str] | None = None

    @property
    def full_digest(self) -> str:
        """SHA-256 of the names and the SHA-256 of all files, if all bytes were read."""
        return hashlib.sha256(json.dumps(sorted((self.sha256 or {}).items())).encode()).hexdigest()


def identify(folder: Path, verify: bool = False) -> Identity:
    """The identity of the weights in ``folder``, with those of an adapter that is joined to them.

    ``verify`` reads all bytes, for the SHA-256 of every file.

    Raises:
        ActError: Weights are missing or truncated.
    """
    digest = hashlib.sha256(b"files")
    sizes = {}
    headers = read_headers(folder, str(folder))
    if (folder / ADAPTER).is_dir():
        headers[f"{ADAPTER}/{ADAPTER_WEIGHTS}"] = read_header(folder / ADAPTER / ADAPTER_WEIGHTS)
        config = f"{ADAPTER}/{ADAPTER_CONFIG}"
        sizes[config] = (folder / config).stat().st_size
        digest.update((folder / config).read_bytes())
    for name, header in headers.items():
        sizes[name] = (folder / name).stat().st_size
        with (folder / name).open("rb") as file:
            digest.update(f"{name} {sizes[name]}\n".encode())
            digest.update(file.read(header.data_start))
            for entry in header.entries.values():
                file.seek(header.data_start + entry.start)
                digest.update(file.read(min(entry.size, _SAMPLE_BYTES)))
    commit = folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None
    sha256 = None
    if verify:
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            sha256 = dict(zip(sizes, pool.map(file_sha256, [folder / name for name in sizes]), strict=True))
    return Identity(digest.hexdigest(), commit, sizes, sha256)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a whole file; read once in a process while its size and time of change stay the same."""
    status = path.stat()
    key = (path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    recent = time.time_ns() - status.st_mtime_ns < _CLOCK_TICK  # a change within a tick of the clock leaves no trace
    return _file_sha256.__wrapped__(*key) if recent else _file_sha256(*key)


@lru_cache(maxsize=10_000)
def _file_sha256(path: Path, *_status: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identify_module(model: nn.Module, verify: bool = False) -> Identity:
    """The identity of weights in memory: names, shapes, dtypes and the first 64 KiB of every parameter.

    With ``verify``, all bytes; of sharded parameters, those of this process. It never equals the identity of a folder,
    which covers the files' headers too.

    Raises:
        ActError: A parameter has no values yet (meta device).
    """
    digest = hashlib.sha256(b"module")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            problem = "must have values, and is on the meta device"
            raise ActError(ConfigIssue("model", name, problem, "Load the weights, or name the model by its folder."))
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        values: Tensor = getattr(parameter, "to_local", lambda parameter=parameter: parameter)()  # of FSDP2, its shard
        size = values.numel() if verify else _SAMPLE_BYTES // parameter.element_size()
        sample = values.detach().reshape(-1)[:size].cpu().contiguous()
        digest.update(sample.view(torch.uint8).numpy().data)
    return Identity(digest.hexdigest(), None, {})
