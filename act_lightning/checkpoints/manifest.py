"""What an export consists of: a list in its folder, which tells its files from those of others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import act_lightning
from act_lightning.checkpoints.weight_files import HASHING_THREADS, file_sha256
from act_lightning.errors import ConfigIssue

MANIFEST = ".act_lightning.json"
_REWRITTEN = "README.md"  # by the verb `card`
_NAMED = 3  # files in a message
_NOT_HASHED: Mapping[str, str] = MappingProxyType({})


def write_manifest(folder: Path, sha256: Mapping[str, str] = _NOT_HASHED) -> None:
    """List every file of ``folder``, which is complete, with its size and SHA-256 in its :data:`MANIFEST`.

    ``sha256`` has that of files which were hashed as they were written.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        states = pool.map(lambda path: _state(path, sha256.get(path.relative_to(folder).as_posix())), paths)
        files = {path.relative_to(folder).as_posix(): state for path, state in zip(paths, states, strict=True)}
    content = {"version": act_lightning.__version__, "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def foreign_issue(folder: Path, setting: str, what: str = "export", quick: bool = False) -> ConfigIssue | None:
    """Why a folder, given by ``setting``, cannot be replaced: it holds more than the files of an earlier export.

    Args:
        folder: It need not exist.
        setting: The one that names it, for the message.
        what: Another word for an export.
        quick: Whether files are only read if the system has seen a change of them since they were listed. Before
            anything is replaced, all bytes are read.
    """
    names = list(islice(_foreign_files(folder, quick), _NAMED + 1)) if folder.is_dir() else []
    if not names:
        return None
    listed = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    if (folder / MANIFEST).is_file():
        problem = f"holds {listed}, not listed or changed since"
        hint = "Move that away, or choose another folder."
    else:
        problem = f"holds {listed}, and no list ({MANIFEST})"
        hint = f"Move it away, or choose another folder; {what}s of version 0.1 have no list, and are kept, too."
    return ConfigIssue(setting, str(folder), f"must hold nothing but an earlier {what}, but {problem}", hint)


def _foreign_files(folder: Path, quick: bool) -> Iterator[str]:
    """The files, links and empty folders in ``folder`` that its manifest does not list, or lists otherwise.

    All of them, if there is no readable manifest.
    """
    try:
        listed = dict(json.loads((folder / MANIFEST).read_bytes())["files"]) | {MANIFEST: None}
        listed_at = (folder / MANIFEST).stat().st_ctime_ns
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        listed, listed_at = {}, 0

    def is_foreign(path: Path) -> bool:
        name = path.relative_to(folder).as_posix()
        if name not in listed or path.is_symlink() or not path.is_file():
            return True
        if name == MANIFEST or (quick and path.stat().st_ctime_ns <= listed_at):
            return False
        return bool(_state(path) != listed[name])

    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        paths = [Path(parent, name) for name in sorted([*files, *links])]
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            for path, foreign in zip(paths, pool.map(is_foreign, paths), strict=True):
                if foreign:
                    yield path.relative_to(folder).as_posix()
        if not folders and not files and Path(parent) != folder:
            yield Path(parent).relative_to(folder).as_posix()


def _state(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """What the manifest says of a file."""
    if path.name == _REWRITTEN:
        return {}
    return {"bytes": path.stat().st_size, "sha256": sha256 or file_sha256(path)}
