"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import glob
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from act_lightning.errors import ActError, ConfigIssue

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_FICLONE = 0x40049409  # linux/fs.h; supported by btrfs, XFS, bcachefs, OCFS2, NFS 4.2


def name_issues(name: str, setting: str) -> list[ConfigIssue]:
    """The issue of a name that cannot be part of a path, given under ``setting``."""
    if _NAME.fullmatch(name) and name not in (".", ".."):
        return []
    problem = "must be a name that matches [A-Za-z0-9._-]+ and is not . or .."
    return [ConfigIssue(setting, name, problem, "Rename it: files are named after it.")]


def parse_json(text: str | bytes, unique_keys: bool = False) -> Any:  # noqa: ANN401 - any JSON
    """The value of a JSON text from a file that anybody may have written.

    With ``unique_keys``, a key that stands twice in an object is an error.

    Raises:
        ValueError: It is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys if unique_keys else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return result


def check_writable(folder: Path, setting: str) -> list[ConfigIssue]:
    """The issue of a ``folder`` in which no file can be created; it need not exist yet, and nothing is left in it."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            return []
    except OSError as error:
        return [_not_writable(setting, folder, error)]


def _not_writable(setting: str, path: Path, error: OSError) -> ConfigIssue:
    problem = f"must be writable ({error.strerror or error})"
    return ConfigIssue(setting, str(path), problem, "Free some space, permit writing there, or choose another folder.")


@contextmanager
def wrap_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError within the block into an :class:`ActError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise ActError(_not_writable("output", path, error)) from error


def write_file(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to ``path``; a reader sees the old file or the whole new one.

    Raises:
        ActError: The file cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write ``tensors`` as one safetensors file, complete or not at all.

    Raises:
        ActError: The file cannot be written.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(contiguous, temporary, dict(metadata or {}))


def reflink(source: Path, target: Path) -> bool:
    """Make ``target`` a reflink of ``source``; if the file system cannot, leave no ``target`` and return False."""
    if sys.platform != "linux":
        return False
    from fcntl import ioctl

    try:
        with source.open("rb") as source_file, target.open("wb") as target_file:
            ioctl(target_file.fileno(), _FICLONE, source_file.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` if the block succeeds, else remove it.

    Raises:
        ActError: The file cannot be written.
    """
    with wrap_os_errors(path):
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        temporary = temporary_path(path)
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a new, empty folder next to ``path``; rename it to ``path`` if the block succeeds, else remove it.

    An existing folder stays until the new one is complete. Between the two renames there is nothing at ``path``, never
    half of something. If ``durable``, everything is flushed to disk before renaming, so that a power failure leaves no
    partial folder.

    Raises:
        ActError: The folder cannot be written.
    """
    path = path.resolve()
    temporary, old = temporary_path(path), temporary_path(path)
    with wrap_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        temporary.mkdir()
    try:
        yield temporary
        with wrap_os_errors(path):
            for file in (*temporary.rglob("*"), temporary) if durable else ():
                sync(file)
            with suppress(FileNotFoundError):
                path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                with suppress(FileNotFoundError):
                    old.rename(path)
                raise
            sync(path.parent)
            remove(old)
    finally:
        remove(temporary)


def temporary_path(path: Path) -> Path:
    """A new name in the folder of ``path``, which :func:`remove_leftovers` recognizes."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that killed runs left in ``folder``: those of ``name``, or all."""
    pattern = "*" if name is None else glob.escape(name)
    for leftover in list(folder.glob(f".{pattern}.tmp-*")):
        remove(leftover)


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to disk, so that a power failure never leaves a renamed file without its content."""
    if path.is_dir() and os.name != "posix":  # only POSIX opens folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
