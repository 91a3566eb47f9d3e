"""Weights in ``pytorch_model.bin``: read only where a model is named ``bin:…``, and converted to safetensors once."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from act_lightning.checkpoints.files import atomic_folder, no_wider_than, read_json, remove_leftovers, wrap_os_errors
from act_lightning.checkpoints.weight_files import CONFIG, INDEX, SINGLE, aux_files, new_header
from act_lightning.defaults import cache_folder
from act_lightning.errors import ActError, ConfigIssue

BIN_PREFIX = "bin:"
_BIN = "pytorch_model.bin"
_BIN_INDEX = f"{_BIN}.index.json"


def convert_bin(folder: Path, setting: str) -> Path:
    """Convert a folder with ``pytorch_model.bin``, sharded or not, to safetensors in the cache, once, and return that.

    Of several processes that call this at once, one converts and the others wait. Shards, keys and dtypes stay the
    same. ``setting`` is the one that names the model, for messages.

    Raises:
        ActError: A file is missing or damaged, holds more than tensors, or the disk is full.
    """
    files = _converted_names(folder, setting)
    states = [(name, (folder / name).stat().st_size, (folder / name).stat().st_mtime_ns) for name in files]
    fingerprint = hashlib.sha256(json.dumps([str(folder.resolve()), states]).encode()).hexdigest()[:16]
    converted = cache_folder("converted") / fingerprint / folder.resolve().name
    if (converted / CONFIG).is_file():
        return converted
    with wrap_os_errors(converted):
        converted.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(converted.parent / ".lock"):
        if not (converted / CONFIG).is_file():
            remove_leftovers(converted.parent)
            _convert(folder, converted, files)
    return converted


def _convert(folder: Path, converted: Path, files: Mapping[str, str]) -> None:
    with no_wider_than(folder), atomic_folder(converted) as temporary:
        weight_map = {}
        for name, converted_name in files.items():
            tensors = _load(folder / name)
            header = new_header({key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()})
            path = temporary / converted_name
            with wrap_os_errors(path), path.open("wb") as file:
                file.write(header.encode())
                for key in header.entries:
                    file.write(tensors[key].detach().contiguous().view(-1).view(torch.uint8).numpy().data)
                    weight_map[key] = converted_name
        if len(files) > 1:
            (temporary / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        for path in aux_files(folder):
            copy = temporary / path.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())


def _converted_names(folder: Path, setting: str) -> dict[str, str]:
    """The name of the safetensors file for each ``.bin`` file."""
    if (folder / _BIN).is_file():
        return {_BIN: SINGLE}
    try:
        names = sorted({*read_json(folder / _BIN_INDEX)["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"must hold {_BIN} or a readable {_BIN_INDEX}, since it is named {BIN_PREFIX}… ({error})"
        hint = f"Leave out {BIN_PREFIX} to read safetensors."
        raise ActError(ConfigIssue(setting, str(folder), problem, hint)) from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        problem = f"must stand in {folder}, whose index names them"
        raise ActError(ConfigIssue(setting, missing[:5], problem, "Download them."))
    return {name: f"{Path(name).stem.replace('pytorch_model', 'model')}.safetensors" for name in names}


def _load(path: Path) -> dict[str, Tensor]:
    """Load a ``.bin`` file, which is a pickle; ``weights_only`` keeps it from running code."""
    hint = "Download it again; if it holds more than tensors, convert it with the program that wrote it."
    try:
        # Mapped, so that a tensor is in memory only while it is copied; what torch wrote before 1.6 cannot be mapped.
        mmap = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle can fail with any exception
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        problem = f"must be a readable file of tensors ({reason})"
        raise ActError(ConfigIssue(str(path), path.name, problem, hint)) from error
    odd = not isinstance(content, dict) or [key for key, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise ActError(ConfigIssue(str(path), str(odd), "must hold tensors by name and nothing else", hint))
    return dict(content)
