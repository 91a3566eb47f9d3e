"""What safetensors files say about themselves, and which files of a folder are weights."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


def new_header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Header:
    """The header of a new file of ``tensors``, given as dtype and shape by key; wider dtypes come first.

    Raises:
        ActError: A dtype that a plain language model is not stored in.
    """
    odd = [f"{key} {dtype}" for key, (dtype, _) in tensors.items() if dtype not in _CODES]
    if odd:
        problem = f"must have a dtype among {', '.join(DTYPES)}"
        raise ActError(ConfigIssue("weights", odd[:5], problem, "Give plain, unquantized weights."))
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
        problem = (
            f"must be {header.data_start + header.data_size} bytes long by its header, and is {size}: it is truncated"
        )
        raise ActError(_unreadable(path, problem))
    return header


def read_opening(path: Path, header: Header) -> bytes:
    """The bytes before the first tensor of the file at ``path``, whose ``header`` is known."""
    with path.open("rb") as file:
        return file.read(header.data_start)


def _unreadable(path: Path, problem: str) -> ConfigIssue:
    hint = "Download or copy it again (with git, `git lfs pull` fetches what a pointer file stands for)."
    return ConfigIssue(str(path), path.name, problem, hint)


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


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FOREIGN = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf")


def is_weightless(folder: Path) -> bool:
    """Whether ``folder`` holds no weights of any format: a config alone, enough for a plan."""
    return not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", INDEX, *_FOREIGN))


def require_weights(folder: Path, setting: str) -> None:
    """Check that ``folder`` holds all its safetensors files, each whole by its header; no tensor is read.

    Raises:
        ActError: No safetensors at all, a file missing that the index names, or a truncated one.
    """
    read_headers(folder, setting)


def read_headers(folder: Path, setting: str = "model") -> dict[str, Header]:
    """The header of every weight file of ``folder`` by file name, in the order of their names.

    Raises:
        ActError: As :func:`require_weights`; all issues of the folder in one error.
    """
    index = _read_index(folder)
    files = sorted({*index.values()}) or [SINGLE]
    if not index and not (folder / SINGLE).is_file():
        raise ActError(_no_safetensors(folder, setting))
    headers: dict[str, Header] = {}
    issues: list[ConfigIssue] = []
    for file in files:
        try:
            headers[file] = read_header(folder / file)
        except ActError as error:
            issues.extend(error.issues)
    raise_if_any(issues or _misplaced(folder, index, headers))
    return headers


def stored_entries(folder: Path) -> dict[str, Entry] | None:
    """Every tensor of ``folder`` by its key; ``None`` where it holds no weights.

    Raises:
        ActError: As :func:`require_weights`.
    """
    if is_weightless(folder):
        return None
    headers = read_headers(folder, str(folder)).values()
    return {key: entry for header in headers for key, entry in header.entries.items()}


def _read_index(folder: Path) -> dict[str, str]:
    """The file of every key by the index; empty where a single file holds all, which transformers looks for first."""
    path = folder / INDEX
    if (folder / SINGLE).is_file() or not path.is_file():
        return {}
    try:
        index = json.loads(path.read_bytes())["weight_map"]
        if not index or any(Path(file).name != file for file in index.values()):
            raise ValueError("it names no file, or one outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"must be a JSON index with a weight_map ({error})"
        raise ActError(ConfigIssue(str(path), path.name, problem, "Download or copy it again.")) from error
    return dict(index)


def _misplaced(folder: Path, index: dict[str, str], headers: dict[str, Header]) -> list[ConfigIssue]:
    lost = [key for key, file in index.items() if key not in headers[file].entries]
    if not lost:
        return []
    problem = "must find every tensor in the file it names"
    return [
        ConfigIssue(
            str(folder / INDEX), lost[:5], problem, "The shards are of another model: download all files again."
        )
    ]


def _no_safetensors(folder: Path, setting: str) -> ConfigIssue:
    foreign = sorted(path.name for pattern in _FOREIGN for path in folder.glob(pattern))
    if foreign:
        problem = f"must hold safetensors weights, and holds only {', '.join(foreign[:3])}"
        hint = "Convert them to safetensors; or write bin: before the model's name to have pytorch_model.bin read."
    else:
        problem, hint = "must hold weights", f"Put {SINGLE}, or the files of {INDEX}, into the folder."
    return ConfigIssue(setting, str(folder), problem, hint)


CONFIG = "config.json"
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
"""The target's files that an export keeps, byte for byte. Its card and its records of other runs are not among them."""


def aux_files(folder: Path) -> Iterator[Path]:
    """Those files that stand in ``folder``."""
    for pattern in AUX_FILES:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file() and path.suffix != ".py")


def check_finite(values: Tensor, place: str, name: str, index: Tensor | None = None) -> None:
    """Refuse NaN and infinity in ``values``.

    Args:
        values: Any shape; floating dtypes are looked at, others pass.
        place: The file, or what else holds the tensor.
        name: The tensor's name.
        index: ``[rows]``: the number in the full tensor of each row of ``values``, where these are only some.

    Raises:
        ActError: Naming file, tensor and the first row with such a value.
    """
    number = first_row_not_finite(values)
    if number is None:
        return
    row = number if index is None else int(index[number])
    problem = f"must be finite, and row {row} holds NaN or infinity"
    raise ActError(ConfigIssue(place, name, problem, "The weights are damaged: download, copy or train them again."))


def first_row_not_finite(values: Tensor) -> int | None:
    """The number of the first row that holds NaN or infinity; ``None`` if all is finite, or no floating dtype.

    One pass of ``aminmax``, which carries NaN through, is a hundred times faster than ``isfinite`` in bfloat16 and
    makes no copy.
    """
    values = values.detach()
    if values.numel() == 0 or not values.is_floating_point():
        return None
    if all(math.isfinite(extreme) for extreme in map(float, torch.aminmax(values))):
        return None
    rows = values.reshape(len(values) if values.ndim else 1, -1)
    return next(i for i, row in enumerate(rows) if not torch.isfinite(row).all())


_SAMPLE = 64 * 1024
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Identity:
    """What is known of a model's weights.

    Attributes:
        digest: SHA-256 over headers, file sizes and the first 64 KiB of every tensor, as hexadecimal digits. A copy
            elsewhere has the same digest.
        commit: The hub commit, when the folder lies in the hub's cache; not part of the digest.
        files: The size in bytes of each weight file; empty for weights in memory.
        sha256: The SHA-256 of each whole file, where all was read.
    """

    digest: str
    commit: str | None
    files: Mapping[str, int]
    sha256: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values.

        >>> identity = Identity("ab12", None, {"model.safetensors": 10})
        >>> Identity.from_json(identity.to_json()) == identity
        True
        """
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Identity:
        """The inverse of :meth:`to_json`."""
        return cls(values["digest"], values["commit"], dict(values["files"]), values["sha256"])


def identify(folder: Path, verify: bool = False) -> Identity:
    """The identity of the weights in ``folder``.

    Args:
        folder: A Hugging Face folder with safetensors weights.
        verify: Also read all bytes, for the SHA-256 of every file.

    Raises:
        ActError: Weights are missing or truncated.
    """
    headers = read_headers(folder, str(folder))
    digest = hashlib.sha256(b"files")
    for file, header in headers.items():
        for part in _file_sample(folder / file, header):
            digest.update(part)
    commit = folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None
    sizes = {file: (folder / file).stat().st_size for file in headers}
    return Identity(digest.hexdigest(), commit, sizes, _whole(folder, headers) if verify else None)


def identify_module(model: nn.Module) -> Identity:
    """The identity of weights in memory: names, shapes, dtypes and the first 64 KiB of every parameter.

    It never equals that of a folder, whose files say more.

    Raises:
        ActError: A parameter has no values yet (meta device).
    """
    digest = hashlib.sha256(b"module")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            problem = "must have values, and is on the meta device"
            raise ActError(ConfigIssue("model", name, problem, "Load the weights, or name the model by its folder."))
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        digest.update(_first_bytes(parameter))
    return Identity(digest.hexdigest(), None, {})


def _file_sample(path: Path, header: Header) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield f"{path.name} {path.stat().st_size}\n".encode()
        yield file.read(header.data_start)
        for entry in header.entries.values():
            file.seek(header.data_start + entry.start)
            yield file.read(min(entry.size, _SAMPLE))


def _whole(folder: Path, headers: Mapping[str, Header]) -> dict[str, str]:
    hashes = {}
    for name in headers:
        with (folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _first_bytes(parameter: Tensor) -> bytes:
    count = _SAMPLE // parameter.element_size()
    values = parameter.detach().reshape(-1)[:count].cpu().contiguous()
    return values.view(torch.uint8).numpy().tobytes()
