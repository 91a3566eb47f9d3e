"""One writer at a time: a lock of the operating system on a folder or file, which ends however its process ends."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from act_lightning.checkpoints.files import remove_leftovers, wrap_os_errors
from act_lightning.defaults import is_first_process
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.escaping import terminal_text

_LOCK = ".act_lightning.lock"
_WRITTEN_TO = (
    *("", "scores/*", "checkpoints", "evaluations", "evaluations/*", "evaluations/*/*", "causes", "sweep"),
    *("model", "merged", "best"),  # their cards
)
_held: set[int] = set()  # descriptors of this process


def _close_all() -> None:
    """In a forked process, such as a worker of a data loader, which may outlive the one that holds the locks."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)


@contextmanager
def lock_root(root: Path, verb: str, setting: str = "trainer.default_root_dir") -> Iterator[None]:
    """Hold the lock of a run's folder, which its other processes share without trying; remove what a kill has left.

    Nothing that was not there stays: neither the file of the lock, nor folders that hold nothing else.

    Raises:
        ActError: Another process holds it, or the folder cannot be written.
    """
    if not is_first_process():
        yield
        return
    with _lock(root / _LOCK, root, verb, setting):
        for pattern in _WRITTEN_TO:
            for folder in root.glob(pattern) if pattern else (root,):
                remove_leftovers(folder)
        yield


def holds_root(root: Path) -> bool:
    """Whether this process holds the lock of a run's folder."""
    try:
        status = os.stat(root / _LOCK, follow_symlinks=False)
    except OSError:
        return False
    return any(os.path.samestat(status, os.fstat(held)) for held in _held)


@contextmanager
def lock_output(out: Path, verb: str, setting: str) -> Iterator[None]:
    """Hold the lock of a file or folder outside a run; remove what a kill has left of it.

    Raises:
        ActError: Another process holds it, or that of a run in whose folder it lies; or nothing can be written there.
    """
    out = out.resolve()
    if issue := lock_issue(out.parent, setting):
        raise ActError(issue)
    with _lock(out.with_name(f".{out.name}{_LOCK}"), out, verb, setting):
        remove_leftovers(out.parent, out.name)
        yield


def lock_issue(root: Path, setting: str = "trainer.default_root_dir") -> ConfigIssue | None:
    """Why a start in a run's folder would be refused now: a process of another run holds its lock."""
    from fcntl import LOCK_NB, LOCK_SH, flock

    if not is_first_process():
        return None
    try:
        descriptor = os.open(root / _LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if not any(os.path.samestat(os.fstat(descriptor), os.fstat(held)) for held in _held):
            flock(descriptor, LOCK_SH | LOCK_NB)
    except BlockingIOError:
        return _in_use(descriptor, root, setting)
    except OSError:  # where there are no locks
        pass
    finally:
        os.close(descriptor)
    return None


@contextmanager
def _lock(file: Path, path: Path, verb: str, setting: str) -> Iterator[None]:
    parents = (file.parent.absolute(), *file.parent.absolute().parents)
    absent = [folder for folder in parents if not folder.exists()]
    process, descriptor = os.getpid(), _acquire(file, path, setting)
    _held.add(descriptor)
    holder = {
        "pid": process,
        "host": socket.gethostname(),
        "verb": verb,
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }
    with suppress(OSError):  # the disk is full: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    try:
        yield
    finally:
        if os.getpid() == process and descriptor in _held:
            with suppress(OSError):
                file.unlink()  # while it is locked: see _acquire
            _held.discard(descriptor)
            os.close(descriptor)
            for folder in absent:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()


def _acquire(file: Path, path: Path, setting: str) -> int:
    """Open and lock ``file``, and return its descriptor."""
    from fcntl import LOCK_EX, LOCK_NB, flock

    while True:
        try:
            with wrap_os_errors(path, setting):
                file.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except ActError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # who held it removed the folder in this moment
                continue
            raise
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            issue = _in_use(descriptor, path, setting)
            os.close(descriptor)
            raise ActError(issue) from None
        except OSError as error:  # such as Lustre's, mounted without flock
            print(
                terminal_text(f"warning: {path} cannot be locked ({error.strerror}): start no other run there"),
                file=sys.stderr,
            )
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # who held it has removed it since it was opened here


def _in_use(descriptor: int, path: Path, setting: str) -> ConfigIssue:
    problem, content = "must not be in use by another process", os.pread(descriptor, 1000, 0)
    with suppress(ValueError, TypeError, KeyError):  # it was locked in this moment
        holder = {key: re.sub(r"[^\w .:-]", "", str(value)) for key, value in json.loads(content).items()}
        who = f"process {holder['pid']} on {holder['host']} has been running `{holder['verb']}`"
        problem = f"must not be in use, and {who} there since {holder['since']}"
    return ConfigIssue(setting, str(path), problem, "Wait until it ends, stop it, or choose another folder.")
