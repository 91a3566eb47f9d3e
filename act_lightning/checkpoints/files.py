"""Files and folders that appear complete or not at all, and the names and places they may have."""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from act_lightning.errors import ActError, ConfigIssue

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def name_issues(name: str, setting: str) -> list[ConfigIssue]:
    """The issue of a name that cannot become part of a path.

    Args:
        name: What was given.
        setting: Where it was given.
    """
    if _NAME.fullmatch(name) and name not in (".", ".."):
        return []
    problem = "must be a name that matches [A-Za-z0-9._-]+ and is not . or .."
    return [ConfigIssue(setting, name, problem, "Rename it: files are named after it.")]


_FICLONE = 0x40049409  # linux/fs.h: btrfs, XFS, bcachefs, OCFS2, NFS 4.2, and others through them


def reflink(origin: Path, copy: Path) -> bool:
    """Make ``copy`` a reflink of ``origin``; where the file system cannot, leave no ``copy`` and return False."""
    if sys.platform != "linux":
        return False
    from fcntl import ioctl

    try:
        with origin.open("rb") as source, copy.open("wb") as target:
            ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError:
        copy.unlink(missing_ok=True)
        return False
    return True


def write_file(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to ``path``; a reader sees the old file or the whole new one.

    Raises:
        ActError: The file system refuses: read-only, full, a file where a folder should be.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with wrap_os_errors(path), atomic_file(path) as temporary:
        temporary.write_bytes(data)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write ``tensors`` as one safetensors file, complete or not at all.

    Raises:
        ActError: The file system refuses.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with wrap_os_errors(path), atomic_file(path) as temporary:
        save_file(contiguous, temporary, dict(metadata or {}))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path beside ``path``; move what was written there to ``path`` when the block ends well, else remove it."""
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
    """Give an empty folder beside ``path``; move it to ``path`` when the block ends well, else remove it.

    An existing folder stands until the new one is complete, and is then moved away and deleted. Temporary folders
    of earlier, killed runs are removed first.

    Args:
        path: The folder to be.
        durable: Whether to wait until the disk holds everything, so that not even a power failure leaves half of it.

    Raises:
        ActError: The file system refuses.
    """
    path = path.resolve()
    temporary = temporary_path(path)
    with wrap_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        temporary.mkdir()
    try:
        yield temporary
        with wrap_os_errors(path):
            for file in (*temporary.rglob("*"), temporary) if durable else ():
                sync(file)
            _swap(temporary, path)
    finally:
        remove(temporary)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed runs left beside the file or folder ``name``, or beside any in ``folder``."""
    pattern = "*" if name is None else glob.escape(name)
    for leftover in list(folder.glob(f".{pattern}.tmp-*")):
        remove(leftover)


def check_writable(folder: Path, setting: str) -> list[ConfigIssue]:
    """The issue, if any, that keeps files from being written under ``folder``, which may not exist yet.

    Nothing is left behind: the trial file has no name.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=place):
            return []
    except OSError as error:
        return [_refused(setting, folder, error)]


@contextmanager
def wrap_os_errors(path: Path) -> Iterator[None]:
    """Say which path could not be written, and why, when the file system refuses within the block.

    Raises:
        ActError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise ActError(_refused("output", path, error)) from error


def _refused(setting: str, path: Path, error: OSError) -> ConfigIssue:
    problem = f"must be writable ({error.strerror or error})"
    return ConfigIssue(setting, str(path), problem, "Free some space, permit writing there, or choose another folder.")


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that is nobody else's, and that :func:`remove_leftovers` knows."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def _swap(new: Path, place: Path) -> None:
    """Rename ``new`` to ``place``; between the two renames there is nothing at ``place``, never half of something."""
    old = temporary_path(place)
    with suppress(FileNotFoundError):
        place.rename(old)
    try:
        new.rename(place)
    except OSError:
        with suppress(FileNotFoundError):
            old.rename(place)
        raise
    sync(place.parent)
    remove(old)


def is_temporary_path(path: Path) -> bool:
    """Whether this is such a name, which is renamed by whoever chose it."""
    return path.name.startswith(".") and ".tmp-" in path.name


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk hold what was written, so that a rename never outruns its content in a power failure."""
    if path.is_dir() and os.name != "posix":  # only POSIX opens folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
