"""A Hugging Face folder in the target's own layout: same shards, keys, config and tokenizer, other values."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from act_lightning.channels import as_matrix
from act_lightning.checkpoints.files import atomic_folder, no_wider_than, wrap_os_errors
from act_lightning.checkpoints.manifest import foreign_issue, write_manifest
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import CONFIG, INDEX, Header, aux_files, check_finite
from act_lightning.console import Progress, format_bytes, progress_bar
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

FileContent = str | bytes | Callable[[], str]
_NO_FILES: Mapping[str, FileContent] = MappingProxyType({})
_NO_BUFFERS: Mapping[str, Tensor] = MappingProxyType({})
_CONFIG_DTYPE = re.compile(rb'("(?:torch_)?dtype"\s*:\s*)(?:"[^"]*"|null)')


def export_model(
    out: Path,
    target: Path,
    get: Callable[[str], Tensor],
    dtype: torch.dtype | None = None,
    extra_files: Mapping[str, FileContent] = _NO_FILES,
    overwrite: bool = False,
    buffers: Mapping[str, Tensor] = _NO_BUFFERS,
) -> dict[str, str]:
    """Write a model to ``out`` in the layout of ``target``, one tensor in memory at a time; complete or not at all.

    Key names, shards, index and metadata are the target's; so are config, generation config, tokenizer and chat
    template, byte for byte, except that the config names ``dtype``, if given. Stored tensors that are no parameters
    and not among ``buffers`` (attention masks, rotary frequencies) are copied.

    Args:
        out: The folder to write.
        target: The folder whose layout is kept.
        get: Returns the values of a parameter by its name in the model, in its shape and any floating dtype, on any
            device. It is called once for every stored parameter, in the order of the target's files.
        dtype: The dtype of all parameters on disk; by default each has the target's.
        extra_files: More files by name, such as a card; a function is called once the weights are written.
        overwrite: Whether an earlier export in ``out`` may be replaced, once the new one is complete.
        buffers: The model's buffers by name; those that it reads from a checkpoint are written, in the target's dtype.

    Returns:
        The SHA-256 of each weight file, computed as it is written.

    Raises:
        ActError: As :func:`output_issues`; or the disk lacks space, a value is NaN or infinite, or the target is
            incomplete.
        ValueError: ``get`` returns another shape.
    """
    with open_output(out, target, dtype, extra_files, overwrite) as (folder, reader, headers, sha256, bar):
        stored = {key: buffers[name] for name, key in reader.keymap.buffers.items() if name in buffers}
        parts = _Parts(reader, get)
        for file, header in headers.items():
            sha256[file] = _write_shard(folder / file, header, reader, get, parts, stored, bar)
        return sha256


class _Parts:
    """Assembles stored tensors that hold pieces of parameters; each parameter is got once, and kept until its last."""

    def __init__(self, reader: CheckpointReader, get: Callable[[str], Tensor]) -> None:
        self._reader = reader
        self._get = get
        self._values: dict[str, Tensor] = {}
        self._waiting = {name: reader.stored_keys(name) for name in reader.keymap.pieces}

    def assemble(self, key: str) -> Tensor:
        """The stored tensor of ``key``, in its shape."""
        pieces = []
        for name, parts in self._reader.parts[key].items():
            if name not in self._values:
                values, shape = self._get(name).detach(), self._reader.spec.shapes[name]
                if tuple(values.shape) != shape:
                    raise ValueError(f"{name} has shape {tuple(values.shape)}, and the target stores {shape}")
                self._values[name] = as_matrix(values)
            matrix = self._values[name]
            pieces += [(part.stored_row, matrix[part.row : part.row + part.height]) for part in parts]
            self._waiting[name].discard(key)
            if not self._waiting[name]:
                del self._values[name]
        values = torch.cat([rows for _, rows in sorted(pieces, key=lambda piece: piece[0])])
        return values.view(self._reader.entry_of(key).shape)


@contextmanager
def open_output(
    out: Path,
    target: Path,
    dtype: torch.dtype | None,
    extra_files: Mapping[str, FileContent],
    overwrite: bool,
    durable: bool = True,
) -> Iterator[tuple[Path, CheckpointReader, dict[str, Header], dict[str, str], Progress]]:
    """Open a new folder in the layout of ``target``; the block writes its weight files, and all others follow.

    Arguments and errors are those of :func:`export_model`; ``durable`` is that of
    :func:`~act_lightning.checkpoints.files.atomic_folder`.

    Yields:
        The temporary folder, the target's reader, the header of every file to write, a dict to which the block adds
        the SHA-256 of every such file, and a progress bar over all bytes.
    """
    raise_if_any(output_issues(out, target, "output", overwrite=overwrite))
    with CheckpointReader(target) as reader:
        headers, keys = reader.headers, reader.keymap.names.keys() | reader.parts.keys()
        if dtype is not None:
            headers = {file: header.cast(keys, dtype) for file, header in headers.items()}
        require_space(out, headers)
        total = sum(header.data_size for header in headers.values())
        with (
            no_wider_than(target),
            atomic_folder(out, durable) as folder,
            bytes_bar(f"Writing {out.name}", total) as bar,
        ):
            sha256: dict[str, str] = {}
            yield folder, reader, headers, sha256, bar
            files = {str(path.relative_to(target)): path.read_bytes() for path in aux_files(target)}
            if dtype is not None:
                named = rb'\1"' + str(dtype).removeprefix("torch.").encode() + b'"'
                files[CONFIG] = _CONFIG_DTYPE.sub(named, files[CONFIG])
            for name, content in extra_files.items():
                content = content() if callable(content) else content
                files[name] = content.encode("utf-8") if isinstance(content, str) else content
            if len(headers) > 1 or (target / INDEX).is_file():
                files[INDEX] = (target / INDEX).read_bytes()
                if headers != reader.headers:
                    index = json.loads(files[INDEX])
                    index.setdefault("metadata", {})["total_size"] = total
                    files[INDEX] = json.dumps(index, indent=2).encode() + b"\n"
            for name, data in files.items():
                path = folder / name
                with wrap_os_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
            with wrap_os_errors(out):
                write_manifest(folder, sha256)


def output_issues(
    out: Path,
    target: Path,
    setting: str,
    sources: Iterable[Path] = (),
    overwrite: bool = False,
    remedy: str = "Add --overwrite to replace it",
    quick: bool = False,
) -> list[ConfigIssue]:
    """Why ``target`` cannot be exported to ``out``.

    It is a file, or a model of the run; or it holds an earlier export, unless ``overwrite``; or files that no export
    has written, or that were changed since, which are never replaced.

    ``setting`` is the one that names ``out``, and ``remedy`` says how an export is replaced, for messages; ``quick`` is
    that of :func:`~act_lightning.checkpoints.manifest.foreign_issue`.
    """
    hint = "Name a folder that does not exist, or that holds an earlier export."
    resolved = out.resolve()
    for name, folder in (("the target", target), *(("a source", source) for source in sources)):
        model = folder.resolve()
        if resolved == model or resolved in model.parents:
            return [ConfigIssue(setting, str(out), f"must not be or hold {name}, which would be replaced", hint)]
    if out.exists() and not out.is_dir():
        return [ConfigIssue(setting, str(out), "must be a folder, and is a file", hint)]
    if foreign := foreign_issue(out, setting, quick=quick):
        return [foreign]
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        problem = "must not be replaced unasked, and holds an earlier export"
        return [ConfigIssue(setting, str(out), problem, f"{remedy}, or choose another folder.")]
    return []


def require_space(out: Path, headers: Mapping[str, Header]) -> None:
    """Check that the disk has room for files with these headers.

    Raises:
        ActError: With the space that is needed and available.
    """
    size = sum(header.data_size for header in headers.values())
    existing = next(path for path in out.resolve().parents if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < size:
        problem = f"must have room for {format_bytes(size)}, and {existing} has {format_bytes(free)} left"
        raise ActError(ConfigIssue("output", str(out), problem, "Free some space or choose another folder."))


def bytes_bar(title: str, total: int) -> Progress:
    """A progress bar over ``total`` bytes, which disappears at the end."""
    return progress_bar(total=total, desc=title, unit="B", unit_scale=True, leave=False)


def _write_shard(
    path: Path,
    header: Header,
    reader: CheckpointReader,
    get: Callable[[str], Tensor],
    parts: _Parts,
    buffers: Mapping[str, Tensor],
    bar: Progress,
) -> str:
    """Write a weight file, and return its SHA-256."""
    digest = hashlib.sha256(opening := header.encode())
    with wrap_os_errors(path):
        file = path.open("wb", buffering=0)
    with file:
        _write(file, opening)
        for key, entry in header.entries.items():
            name = reader.keymap.names.get(key)
            if name is None and key not in buffers and key not in reader.parts:
                data = reader.raw(key)
            else:
                if key in reader.parts:
                    values = parts.assemble(key)
                else:
                    values = (buffers[key] if name is None else get(name)).detach()
                if tuple(values.shape) != entry.shape:
                    raise ValueError(
                        f"{name or key} has shape {tuple(values.shape)}, and the target stores {entry.shape}"
                    )
                values = values.to("cpu", entry.dtype).contiguous()
                check_finite(values, "output", name or key)
                data = values.view(-1).view(torch.uint8)
            _write(file, data.numpy().data)
            digest.update(data.numpy().data)
            bar.update(len(data))
    return digest.hexdigest()


def _write(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of ``data``; one call to an unbuffered file writes 2 GiB at most."""
    rest = memoryview(data)
    with wrap_os_errors(Path(str(file.name))):
        while rest:
            rest = rest[file.write(rest) :]
