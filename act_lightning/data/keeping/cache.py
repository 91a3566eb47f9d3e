"""Prepared samples on disk: where they lie, who prepares them, and whether they can be trusted."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info

from act_lightning.checkpoints import check_writable, replacing_folder
from act_lightning.checkpoints.atomic import storing
from act_lightning.data.keeping.cache_key import file_digest
from act_lightning.data.keeping.preparation import PreparedShard
from act_lightning.data.keeping.storage import StoredSamples
from act_lightning.errors import refuse

_MANIFEST = "manifest.json"
_UNKNOWN = "uncached-"


@dataclass(frozen=True)
class PreparedSet:
    """A prepared set.

    Attributes:
        samples: Its samples, read from disk when they are asked for.
        rows: Number of rows that they were made from.
        empty: Number of rows with an empty answer or none.
    """

    samples: StoredSamples
    rows: int
    empty: int


def cache_root(setting: str | None) -> Path:
    """The folder of all prepared sets: the setting, ``$ACT_LIGHTNING_CACHE/data`` or ``~/.cache/act_lightning/data``.

    Args:
        setting: ``data.cache_dir``.
    """
    if setting is not None:
        return Path(setting).expanduser()
    chosen = os.environ.get("ACT_LIGHTNING_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "act_lightning") / "data"


def prepared(root: Path, key: str | None, prepare: Callable[[Path], list[PreparedShard]]) -> PreparedSet:
    """The prepared set of a key: as it lies there if every byte is as it was written, or else prepared again.

    Of several processes that ask at once, one prepares and the others wait.

    Args:
        root: The folder of all prepared sets; it need not be writable if the set lies there.
        key: The fingerprint; a set without any is prepared for this process alone, and removed when it ends.
        prepare: Writes shards into the folder it is given.

    Raises:
        ActError: If the folder cannot be written, or preparing fails.
    """
    folder = root / (key or f"{_UNKNOWN}{os.getpid()}-{secrets.token_hex(4)}")
    found = _trusted(folder)
    if found is not None:
        return found
    refuse(check_writable(root, "data.cache_dir"))
    with storing(root):
        root.mkdir(parents=True, exist_ok=True)
    if key is None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return _prepared_anew(folder, prepare)
    with FileLock(root / f".{key}.lock"):
        return _trusted(folder) or _prepared_anew(folder, prepare)


def _prepared_anew(folder: Path, prepare: Callable[[Path], list[PreparedShard]]) -> PreparedSet:
    with replacing_folder(folder) as unfinished:
        shards = prepare(unfinished)
        digests = {one.file: file_digest(unfinished / one.file) for one in shards if one.samples}
        manifest = {"shards": [asdict(one) for one in shards], "digests": digests}
        (unfinished / _MANIFEST).write_text(json.dumps(manifest | {"digest": _digest(manifest)}))
    return _opened(folder, shards)


def _trusted(folder: Path) -> PreparedSet | None:
    """The set in a folder, or ``None`` if there is none, or one that is damaged."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        intact = manifest.pop("digest") == _digest(manifest)
        intact = intact and all(file_digest(folder / file) == known for file, known in manifest["digests"].items())
    except (OSError, ValueError, LookupError, AttributeError):
        intact = False
    if not intact:
        rank_zero_info(f"the prepared set in {folder} is damaged: it is prepared again")
        return None
    return _opened(folder, [PreparedShard(**entry) for entry in manifest["shards"]])


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _opened(folder: Path, shards: list[PreparedShard]) -> PreparedSet:
    filled = [one for one in shards if one.samples]
    samples = StoredSamples([folder / one.file for one in filled], [one.samples for one in filled])
    return PreparedSet(samples, sum(one.rows for one in shards), sum(one.empty for one in shards))
