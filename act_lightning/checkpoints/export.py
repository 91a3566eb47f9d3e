"""A Hugging Face folder in the target's own layout: same shards, keys, config and tokenizer, other values."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from io import FileIO
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from tqdm.auto import tqdm

from act_lightning.checkpoints.files import atomic_folder, wrap_os_errors
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import CONFIG, INDEX, Header, aux_files, check_finite
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

_NO_FILES: Mapping[str, str | bytes] = MappingProxyType({})
_CONFIG_DTYPE = re.compile(rb'("(?:torch_)?dtype"\s*:\s*)(?:"[^"]*"|null)')


def export_model(
    out: Path,
    target: Path,
    get: Callable[[str], Tensor],
    dtype: torch.dtype | None = None,
    extra_files: Mapping[str, str | bytes] = _NO_FILES,
) -> None:
    """Write a model to ``out`` as ``target`` is written, one tensor in memory at a time; complete or not at all.

    Key names, shards, index and metadata are the target's; so are config, generation config, tokenizer and chat
    template, byte for byte, except that another ``dtype`` is named in the config. What the target stores beside its
    parameters (attention masks, rotary frequencies) is copied.

    Args:
        out: The folder to be; an earlier export there is replaced when the new one is complete.
        target: The folder of the model whose layout is kept.
        get: Gives the values of a parameter by its name in the model, in its shape and any floating dtype, on any
            device. It is called once for every stored parameter, in the order of the target's files.
        dtype: The dtype of all parameters on disk; by default each has the target's.
        extra_files: Further files by name, such as a card.

    Raises:
        ActError: As :func:`output_issues`; too little space; a value that is NaN or infinite; the target is incomplete.
        ValueError: ``get`` gives another shape.
    """
    raise_if_any(output_issues(out, target, "output"))
    with CheckpointReader(target) as reader:
        planned = plan_files(reader, dtype)
        require_space(out, planned)
        with atomic_folder(out) as folder, progress(out, planned) as bar:
            for file, header in planned.items():
                _write_shard(folder / file, header, reader, get, bar)
            write_texts(folder, reader, planned, dtype, extra_files)


def output_issues(out: Path, target: Path, setting: str, sources: Iterable[Path] = ()) -> list[ConfigIssue]:
    """What speaks against an export of ``target`` to ``out``: a file, a model of the run, or a folder of other things.

    Only an empty folder, or one that holds a model (an earlier export), is ever replaced.

    Args:
        out: The folder to be.
        target: Folder of the target.
        setting: Where ``out`` was given, for messages.
        sources: Folders of the sources.
    """
    hint = "Name a folder that does not exist, or that holds an earlier export."
    place = out.resolve()
    for name, folder in (("the target", target), *(("a source", source) for source in sources)):
        origin = folder.resolve()
        if place == origin or place in origin.parents:
            return [ConfigIssue(setting, str(out), f"must not be or hold {name}, which would be replaced", hint)]
    if out.exists() and not out.is_dir():
        return [ConfigIssue(setting, str(out), "must be a folder, and is a file", hint)]
    if out.is_dir() and any(out.iterdir()) and not (out / CONFIG).is_file():
        return [ConfigIssue(setting, str(out), "must be empty or hold a model, and holds other files", hint)]
    return []


def plan_files(reader: CheckpointReader, dtype: torch.dtype | None) -> dict[str, Header]:
    """The header of each file to be written."""
    if dtype is None:
        return reader.headers
    return {file: header.cast(reader.keymap.names.keys(), dtype) for file, header in reader.headers.items()}


def require_space(out: Path, planned: Mapping[str, Header]) -> None:
    """Refuse to begin where the disk has too little room left.

    Raises:
        ActError: With what is needed and what there is.
    """
    size = sum(header.data_size for header in planned.values())
    place = next(path for path in out.resolve().parents if path.is_dir())
    free = shutil.disk_usage(place).free
    if free < size:
        problem = f"must have room for {size / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB left"
        raise ActError(ConfigIssue("output", str(out), problem, "Free some space or choose another folder."))


def progress(out: Path, planned: Mapping[str, Header]) -> tqdm[None]:
    """A bar that counts bytes written."""
    total = sum(header.data_size for header in planned.values())
    return tqdm(total=total, desc=f"Writing {out.name}", unit="B", unit_scale=True, leave=False, disable=None)


def _write_shard(
    path: Path, header: Header, reader: CheckpointReader, get: Callable[[str], Tensor], bar: tqdm[None]
) -> None:
    with wrap_os_errors(path):
        file = path.open("wb", buffering=0)
    with file:
        _write(file, header.encode())
        for key in header.entries:
            data = _stored_bytes(key, header, reader, get)
            _write(file, data.numpy().data)
            bar.update(len(data))


def _stored_bytes(key: str, header: Header, reader: CheckpointReader, get: Callable[[str], Tensor]) -> Tensor:
    """The bytes of one tensor as it will lie on disk: ``[bytes]`` uint8."""
    name, entry = reader.keymap.names.get(key), header.entries[key]
    if name is None:
        return reader.raw(key)
    values = get(name).detach()
    if tuple(values.shape) != entry.shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, and the target stores {entry.shape}")
    values = values.to("cpu", entry.dtype).contiguous()
    check_finite(values, "output", name)
    return values.view(-1).view(torch.uint8)


def _write(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of ``data``; one call to an unbuffered file takes 2 GiB at most."""
    rest = memoryview(data)
    with wrap_os_errors(Path(str(file.name))):
        while rest:
            rest = rest[file.write(rest) :]


def write_texts(
    folder: Path,
    reader: CheckpointReader,
    planned: Mapping[str, Header],
    dtype: torch.dtype | None,
    extra_files: Mapping[str, str | bytes],
) -> None:
    """Write everything but weights: config, tokenizer and the like as the target's, ``extra_files``, and the index."""
    target = reader.folder
    for path in aux_files(target):
        data = path.read_bytes()
        if dtype is not None and path.name == CONFIG:
            data = _CONFIG_DTYPE.sub(rb'\1"' + str(dtype).removeprefix("torch.").encode() + b'"', data)
        _write_text(folder / path.relative_to(target), data)
    for name, content in extra_files.items():
        _write_text(folder / name, content.encode("utf-8") if isinstance(content, str) else content)
    _write_index(folder, target, reader.headers, planned)


def _write_text(path: Path, data: bytes) -> None:
    """Write a file of a folder that is renamed, and flushed where that is wanted, when it is complete."""
    with wrap_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _write_index(folder: Path, target: Path, before: Mapping[str, Header], after: Mapping[str, Header]) -> None:
    """The target's index, with another total size where the dtype has changed."""
    if len(before) == 1 and not (target / INDEX).is_file():
        return
    data = (target / INDEX).read_bytes()
    if before != after:
        index = json.loads(data)
        index.setdefault("metadata", {})["total_size"] = sum(header.data_size for header in after.values())
        data = json.dumps(index, indent=2).encode() + b"\n"
    _write_text(folder / INDEX, data)
