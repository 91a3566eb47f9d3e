"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from act_lightning.errors import ActError, ConfigIssue

_MAX_JSON_BYTES = 100 << 20
_MAX_NAME = 200  # a file system's 255, less what is added to names of files, also while these are written
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-[0-9]+-[0-9a-f]+")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_FICLONE = 0x40049409  # linux/fs.h; supported by btrfs, XFS, bcachefs, OCFS2, NFS 4.2
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # linux/fs.h, fcntl.h


def name_issues(name: str, setting: str) -> list[ConfigIssue]:
    """The issue of a name that cannot be part of a path, given under ``setting``."""
    if _NAME.fullmatch(name) and name not in (".", "..") and len(name) <= _MAX_NAME:
        return []
    problem = f"must be a name of at most {_MAX_NAME} characters that matches [A-Za-z0-9._-]+ and is not . or .."
    return [ConfigIssue(setting, name, problem, "Rename it: files are named after it.")]


def last_part(name: str) -> str:
    """The last part of a model's path, hub id, or name in the laboratory.

    >>> last_part("Qwen/Qwen2.5-7B-Instruct"), last_part("runs/mine/"), last_part("lab:generalist")
    ('Qwen2.5-7B-Instruct', 'mine', 'generalist')
    """
    return re.split(r"[/:\\]", name.rstrip("/\\"))[-1]


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


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON
    """The value in a JSON file that anybody may have written; a key that stands twice is an error.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no JSON, or is nested too deeply, or larger than any of its kind.
    """
    with path.open("rb") as file:
        text = file.read(_MAX_JSON_BYTES + 1)
    if len(text) > _MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {_MAX_JSON_BYTES >> 20} MiB")
    return parse_json(text, unique_keys=True)


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
def wrap_os_errors(path: Path, setting: str = "output") -> Iterator[None]:
    """Turn an OSError within the block into an :class:`ActError` that names ``path``, which ``setting`` gave."""
    try:
        yield
    except OSError as error:
        raise ActError(_not_writable(setting, path, error)) from error


@contextmanager
def no_wider_than(*sources: Path) -> Iterator[None]:
    """Let nobody read or write what is written in the block who may not do that with the ``sources``.

    Sources are files, or folders of weight files, which their folders may protect too. The umask narrows further.
    """
    files = [file for path in sources for file in (_weight_files(path) if path.is_dir() else [path])]
    forbidden = 0
    for file in files:
        mode, folder = file.stat().st_mode, file.parent.stat().st_mode
        for read, write, search in ((0o040, 0o020, 0o010), (0o004, 0o002, 0o001)):
            if not mode & read or not folder & search:
                forbidden |= read | write | search
            elif not mode & write:
                forbidden |= write
    umask = os.umask(0o077)
    os.umask(umask | forbidden)
    try:
        yield
    finally:
        os.umask(umask)


def _weight_files(folder: Path) -> list[Path]:
    return [path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern) if path.is_file()]


@contextmanager
def wrap_disk_errors(folder: Path, setting: str) -> Iterator[None]:
    """Name ``folder``, which ``setting`` gave, where the disk is full or failing and the OSError names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _DISK_ERRORS:
            raise ActError(_not_writable(setting, folder, error)) from error
        raise


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
        try:
            save_file(contiguous, temporary, dict(metadata or {}))
        except SafetensorError as error:  # its only ones in writing are the file system's
            raise OSError(str(error)) from error


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

    An existing folder stays until the new one is complete, and the two are exchanged in one step; where the file
    system cannot do that, :func:`remove_leftovers` puts the existing one back after a kill between two renames. If
    ``durable``, or something is replaced, everything is flushed to disk before renaming, so that a power failure leaves
    no partial folder.

    Raises:
        ActError: The folder cannot be written.
    """
    path = path.resolve()
    temporary = temporary_path(path)
    with wrap_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        with wrap_disk_errors(path, "output"):
            yield temporary
        with wrap_os_errors(path):
            replaces = path.exists()
            for file in (*temporary.rglob("*"), temporary) if durable or replaces else ():
                sync(file)
            if not replaces:
                temporary.rename(path)
            elif not _exchange(temporary, path):
                old = temporary_path(path, "old")
                path.rename(old)
                try:
                    temporary.rename(path)
                except OSError:
                    old.rename(path)
                    raise
                remove(old)
            sync(path.parent)
    finally:
        remove(temporary)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders in one step; return False where the system cannot."""
    if sys.platform != "linux":
        return False
    sys.audit("os.rename", os.fspath(first), os.fspath(second), -1, -1)
    try:
        rename = ctypes.CDLL(None).renameat2  # glibc 2.28, musl 1.2.6
    except AttributeError:
        return False
    status: int = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return status == 0


def temporary_path(path: Path, kind: str = "tmp") -> Path:
    """A new name in the folder of ``path``, which :func:`remove_leftovers` recognizes."""
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that killed runs left in ``folder``: those of ``name``, or all.

    What was about to be replaced is put back instead. Nobody else may be writing there: hold a lock.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or match["name"] != (name or match["name"]):
            continue
        original = path.with_name(match["name"])
        if match["kind"] == "old" and not original.exists():
            path.rename(original)
        else:
            remove(path)


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
