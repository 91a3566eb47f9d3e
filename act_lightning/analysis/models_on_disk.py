"""The models that scores were measured on, if they lie on this machine; nothing is downloaded or built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from act_lightning.analysis.saved import Pair
from act_lightning.checkpoints import identify, is_weightless
from act_lightning.errors import ActError, Fault

_LABORATORY = "lab:"


class NotOnDisk(Exception):
    """A model is not here, or is another one than the scores were measured on; its text says which and why."""


def find_models(pair: Pair, folders: Mapping[str, Path]) -> tuple[Path, Path]:
    """The folders of target and source.

    Args:
        pair: The scores, with the models' names and digests.
        folders: Where a model lies, by its name there.

    Raises:
        NotOnDisk: One of them is not here, or has other weights.
        ActError: A folder in ``folders`` does not hold the model's weights.
    """
    found = []
    for role, name in zip(("target", "source"), pair.models, strict=True):
        folder = folders[name] if name in folders else _find(name, _commit(pair, role))
        try:
            _check(folder, pair.digest(role))
        except NotOnDisk as error:
            if name not in folders:
                raise
            rule = f"must be the folder of {name}, and {error}"
            raise ActError(Fault("--model", str(folder), rule, "Correct the path.")) from error
        found.append(folder)
    return found[0], found[1]


def _commit(pair: Pair, role: str) -> str | None:
    record = next(iter(pair.records.values()))
    commit = record.identities.get(role, {}).get("commit")
    return str(commit) if commit else None


def _find(name: str, commit: str | None) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    return _of_laboratory(name) if name.startswith(_LABORATORY) else _of_hub_cache(name, commit)


def _of_laboratory(name: str) -> Path:
    from act_lightning.laboratory import Recipe
    from act_lightning.laboratory.cache import cache_root

    folder = cache_root() / Recipe().version / name.removeprefix(_LABORATORY)
    if not folder.is_dir():
        raise NotOnDisk(f"{name} has not been built on this machine")
    return folder


def _of_hub_cache(name: str, commit: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=commit, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotOnDisk(f"{name} is neither a folder here nor in the hub's cache") from error


def _check(folder: Path, digest: str | None) -> None:
    if not folder.is_dir() or is_weightless(folder):
        raise NotOnDisk(f"{folder} holds no weights")
    try:
        same = identify(folder).digest == digest
    except ActError as error:
        raise NotOnDisk(f"the weights in {folder} cannot be read ({error})") from error
    if not same:
        raise NotOnDisk(f"the weights in {folder} are not those that the scores were measured on")
