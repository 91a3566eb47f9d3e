"""Weights in ``pytorch_model.bin``: read only where a model is named ``bin:…``, and converted to safetensors once.

A ``.bin`` file is a pickle. It is read with ``weights_only=True``, which makes tensors and nothing else, and mapped, so
that a tensor is in memory while it is copied.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from act_lightning.checkpoints.files import replacing_folder
from act_lightning.checkpoints.headers import CONFIG, INDEX, SINGLE, aux_files, header_of
from act_lightning.checkpoints.streaming import ShardFile
from act_lightning.defaults import cache_folder
from act_lightning.errors import ActError, ConfigIssue

PREFIX = "bin:"
_BIN = "pytorch_model.bin"
_BIN_INDEX = f"{_BIN}.index.json"
_BYTES_AT_ONCE = 1 << 22


def convert_bin(folder: Path, setting: str) -> Path:
    """The folder's safetensors twin below the cache, made at the first call: same shards, key names and dtypes.

    Args:
        folder: A Hugging Face folder with ``pytorch_model.bin``, sharded or not.
        setting: Where the model was named, for messages.

    Raises:
        ActError: There is no such file, one is missing or damaged or holds more than tensors, or the disk is full.
    """
    files = _files(folder, setting)
    twin = cache_folder("converted") / _fingerprint(folder, files) / folder.resolve().name
    if not (twin / CONFIG).is_file():
        with replacing_folder(twin) as place:
            index = {key: name for file, name in files.items() for key in _convert(folder / file, place / name)}
            if len(files) > 1:
                (place / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
            for path in aux_files(folder):
                (place / path.relative_to(folder)).parent.mkdir(exist_ok=True)
                (place / path.relative_to(folder)).write_bytes(path.read_bytes())
    return twin


def _files(folder: Path, setting: str) -> dict[str, str]:
    """Each file's name, and that of its twin."""
    if (folder / _BIN).is_file():
        return {_BIN: SINGLE}
    try:
        names = sorted({*json.loads((folder / _BIN_INDEX).read_bytes())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"must hold {_BIN} or a readable {_BIN_INDEX}, since it is named {PREFIX}… ({error})"
        raise ActError(
            ConfigIssue(setting, str(folder), problem, f"Leave out {PREFIX} to read safetensors.")
        ) from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise ActError(
            ConfigIssue(setting, missing[:5], f"must stand in {folder}, whose index names them", "Download them.")
        )
    return {name: f"{Path(name).stem.replace('pytorch_model', 'model')}.safetensors" for name in names}


def _fingerprint(folder: Path, files: Mapping[str, str]) -> str:
    states = [(name, (folder / name).stat().st_size, (folder / name).stat().st_mtime_ns) for name in files]
    return hashlib.sha256(json.dumps([str(folder.resolve()), states]).encode()).hexdigest()[:16]


def _convert(origin: Path, twin: Path) -> list[str]:
    """Write one file's tensors as safetensors; returns their keys."""
    tensors = _load(origin)
    header = header_of({key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()})
    opening = header.encode()
    with ShardFile(twin, header, len(opening)) as shard:
        shard.write_bytes(opening, 0)
        for key in header.entries:
            for start, data in _pieces(tensors[key]):
                shard.write(key, start, data)
    return list(header.entries)


def _pieces(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    for start in range(0, len(data), _BYTES_AT_ONCE):
        yield start, data[start : start + _BYTES_AT_ONCE]


def _load(path: Path) -> dict[str, Tensor]:
    hint = "Download it again; if it holds more than tensors, convert it with the program that wrote it."
    try:
        mapped = zipfile.is_zipfile(path)  # what torch wrote before 1.6 cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # what is no pickle may look like any instruction of one, and fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ActError(
            ConfigIssue(str(path), path.name, f"must be a readable file of tensors ({reason})", hint)
        ) from error
    odd = not isinstance(content, dict) or [key for key, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise ActError(ConfigIssue(str(path), str(odd), "must hold tensors by name and nothing else", hint))
    return dict(content)
