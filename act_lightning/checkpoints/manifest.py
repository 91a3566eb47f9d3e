"""What an export consists of: a list in its folder, which tells its files from those of others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import act_lightning
from act_lightning.errors import ConfigIssue

MANIFEST = ".act_lightning.json"
_REWRITTEN = "README.md"  # by the verb `card`
_SAMPLES, _SAMPLE_BYTES = 256, 64 * 1024
_NAMED = 3  # files in a message


def write_manifest(folder: Path) -> None:
    """List every file of ``folder``, which is complete, in its :data:`MANIFEST`.

    A file has its size and SHA-256; of weights, which take as long to read as to write, samples are hashed.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): _state(path) for path in paths}
    content = {"version": act_lightning.__version__, "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def foreign_issue(folder: Path, setting: str, what: str = "export") -> ConfigIssue | None:
    """Why a folder, given by ``setting``, cannot be replaced: it holds more than the files of an earlier export.

    ``what`` is another word for an export.
    """
    names = list(islice(_foreign_files(folder), _NAMED + 1)) if folder.is_dir() else []
    if not names:
        return None
    listed = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    if (folder / MANIFEST).is_file():
        problem, hint = f"holds {listed}, not listed or changed since", "Move that away, or choose another folder."
    else:
        problem = f"holds {listed}, and no list ({MANIFEST})"
        hint = f"Move it away, or choose another folder; {what}s of version 0.1 have no list, and are kept, too."
    return ConfigIssue(setting, str(folder), f"must hold nothing but an earlier {what}, but {problem}", hint)


def _foreign_files(folder: Path) -> Iterator[str]:
    """The files, links and empty folders in ``folder`` that its manifest does not list, or lists otherwise.

    All of them, if there is no readable manifest.
    """
    try:
        listed = dict(json.loads((folder / MANIFEST).read_bytes())["files"]) | {MANIFEST: None}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        listed = {}
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in sorted([*files, *links]):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            known = relative in listed and not path.is_symlink()
            if not known or (relative != MANIFEST and _state(path) != listed[relative]):
                yield relative
        if not folders and not files and Path(parent) != folder:
            yield Path(parent).relative_to(folder).as_posix()


def _state(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    if path.name == _REWRITTEN:
        return {}
    if path.suffix == ".safetensors":
        return {"bytes": path.stat().st_size, "sample": sample_digest(path)}
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def sample_digest(path: Path) -> str:
    """SHA-256 of 64 KiB at each of 256 places of a file, evenly spaced: a quick check where reading all takes long."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        for start in range(0, size, max(1, size // _SAMPLES)):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
