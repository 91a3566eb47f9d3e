"""Where rows come from: local files, a saved folder, the hub, or the laboratory."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.files import READERS, FileRows, LocatedRow, Row, RowSource, ending
from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    import datasets


Data = TypeVar("Data")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS_AT_ONCE = 1000


def is_saved_folder(path: str) -> bool:
    """Whether ``save_to_disk`` of a data set, or of several splits, wrote this folder."""
    return any(Path(path, name).is_file() for name in ("state.json", "dataset_dict.json"))


class SavedRows(RowSource):
    """The rows of a data set on this machine: memory-mapped, so that any row is at hand.

    Args:
        data: One split.
        path: Its path or hub id, for messages.
    """

    def __init__(self, data: datasets.Dataset, path: str) -> None:
        self.data = data
        self.path = path

    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows; places read ``path row number``."""
        return self.at(range(len(self.data)))

    def at(self, numbers: Sequence[int]) -> Iterator[LocatedRow]:
        """Some rows, in the order asked for."""
        for start in range(0, len(numbers), _ROWS_AT_ONCE):
            chosen = numbers[start : start + _ROWS_AT_ONCE]
            columns = self.data[chosen]
            for number, values in zip(chosen, zip(*columns.values(), strict=True), strict=True):
                yield f"{self.path} row {number + 1}", dict(zip(columns, values, strict=True))

    def fingerprint(self) -> str:
        """The data set's own, which `datasets` keeps with what it has cached or saved."""
        return str(self.data._fingerprint)


class StreamedRows(RowSource):
    """The rows of a hub data set, downloaded while they are used and kept nowhere.

    Args:
        data: One split.
        settings: Its id and revision.
        where: The data set's place in the config, for messages.
    """

    def __init__(self, data: datasets.IterableDataset, settings: AbilityData, where: str) -> None:
        self.data = data
        self.settings = settings
        self.where = where

    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows; places read ``id row number``."""
        try:
            for number, row in enumerate(self.data, start=1):
                yield f"{self.settings.path} row {number}", dict(row)
        except _refusals() as error:
            raise _unreadable(self.settings, self.where, error) from error

    def fingerprint(self) -> str | None:
        """The commit with name and split, or ``None`` where the hub does not say which commit this is."""
        revision = self.settings.revision or ""
        commit = revision if _COMMIT.fullmatch(revision) else _commit(self.settings)
        return commit and json.dumps([self.settings.path, self.settings.name, self.settings.split, commit])


def _commit(settings: AbilityData) -> str | None:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(settings.path, revision=settings.revision).sha
    except (OSError, ValueError):  # without a hub there is no commit, and the caller is told so
        return None


def load_from_hub(settings: AbilityData, where: str) -> RowSource:
    """A hub data set: downloaded at first use, or streamed.

    Args:
        settings: The settings of one data set whose path is a hub id.
        where: Its place in the config, for messages.

    Raises:
        ActError: If the hub, the data set, its configuration or its split is not to be had, or the split is ambiguous.
    """
    import datasets

    options: dict[str, Any] = {"split": settings.split, "revision": settings.revision}
    if settings.streaming:
        options["streaming"] = True
    try:
        data = datasets.load_dataset(settings.path, settings.name, **options)
    except _refusals() as error:
        raise _unreadable(settings, where, error) from error
    chosen = _one_split(data, settings, where)
    return StreamedRows(chosen, settings, where) if settings.streaming else SavedRows(chosen, settings.path)


def load_from_folder(settings: AbilityData, where: str) -> SavedRows:
    """The data set, or the one split of it, that ``save_to_disk`` wrote into a folder.

    Args:
        settings: The settings of one data set whose path is such a folder.
        where: Its place in the config, for messages.

    Raises:
        ActError: If the folder cannot be read, or has no such split.
    """
    import datasets

    try:
        data = datasets.load_from_disk(settings.path)
    except _refusals() as error:
        raise ActError(
            ConfigIssue(f"{where}.path", settings.path, f"cannot be read: {error}", "Save it again.")
        ) from error
    if settings.split is not None:
        if not isinstance(data, dict):
            problem = f"has no meaning for {settings.path}, which holds one data set without splits"
            raise ActError(ConfigIssue(f"{where}.split", settings.split, problem, "Leave it out."))
        if settings.split not in data:
            raise _no_such_split(data, settings, where)
        data = data[settings.split]
    return SavedRows(_one_split(data, settings, where), settings.path)


def _one_split(data: Data | Mapping[str, Data], settings: AbilityData, where: str) -> Data:
    if not isinstance(data, Mapping):
        return data
    if len(data) > 1:
        raise _no_such_split(data, settings, where)
    (only,) = data.values()
    return only


def _no_such_split(data: Mapping[str, object], settings: AbilityData, where: str) -> ActError:
    return ActError(
        ConfigIssue(f"{where}.split", settings.split, "must name one split", f"Choose one of {', '.join(data)}.")
    )


def _refusals() -> tuple[type[Exception], ...]:
    import datasets

    return OSError, ValueError, LookupError, RuntimeError, datasets.exceptions.DatasetsError


def _unreadable(settings: AbilityData, where: str, error: Exception) -> ActError:
    hint = "Check id, name, split and revision, and the connection to the hub."
    return ActError(ConfigIssue(f"{where}.path", settings.path, f"cannot be loaded: {error}", hint))


__all__ = ["Kind", "LocatedRow", "Row", "kind_of", "load_from_hub", "open_rows", "source_issues"]

Kind = Literal["lab", "file", "folder", "hub", "unknown"]

LABORATORY = "lab:"
_MEANINGFUL: dict[Kind, tuple[str, ...]] = {
    "file": (),
    "folder": ("split",),
    "lab": ("split",),
    "hub": ("name", "split", "revision", "streaming"),
}
_HUB_ID = re.compile(r"(?![.-])[\w.-]+(/[\w.-]+)?")


def kind_of(path: str) -> Kind:
    """What ``path`` names.

    >>> kind_of("data/science-ar.jsonl"), kind_of("meta-math/MetaMathQA"), kind_of("lab:words-de")
    ('file', 'hub', 'lab')
    >>> kind_of("data/science/ar.txt")
    'unknown'
    """
    if path.startswith(LABORATORY):
        return "lab"
    if ending(path) in READERS:
        return "file"
    if is_saved_folder(path):
        return "folder"
    return "hub" if _HUB_ID.fullmatch(path) and not Path(path).exists() else "unknown"


def source_issues(settings: AbilityData, where: str) -> list[ConfigIssue]:
    """What is wrong with ``path`` and the settings that belong to it, as far as no data need be read.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, such as ``data.abilities.math-en``.
    """
    kind = kind_of(settings.path)
    if kind == "unknown":
        endings = ", ".join(f".{name}" for name in READERS)
        hint = f"Name a file that ends in {endings}, a folder of save_to_disk, a hub id (owner/name), or lab:<name>."
        return [ConfigIssue(f"{where}.path", settings.path, "must name a data set of a known kind", hint)]
    issues = []
    if kind == "file" and not _files(settings.path):
        issues.append(ConfigIssue(f"{where}.path", settings.path, "must be an existing file", "Check the path."))
    for setting in _MEANINGFUL["hub"]:
        if setting not in _MEANINGFUL[kind] and (value := getattr(settings, setting)):
            problem = f"has no meaning for {settings.path}"
            issues.append(
                ConfigIssue(f"{where}.{setting}", value, problem, "Leave it out; it belongs to hub data sets.")
            )
    return issues


def open_rows(settings: AbilityData, where: str) -> RowSource:
    """All rows of a data set in its order.

    Args:
        settings: The settings of one data set, without issues.
        where: Its place in the config, for messages.

    Raises:
        ActError: If the data set is not to be had, or, while iterating, at the first row that cannot be read.
    """
    match kind_of(settings.path):
        case "file":
            return FileRows(_files(settings.path), where)
        case "folder":
            return load_from_folder(settings, where)
        case "lab":
            return LaboratoryRows(settings.path, settings.split or "train")
        case _:
            return load_from_hub(settings, where)


def _files(path: str) -> list[str]:
    """The file of this name, or else those that the pattern matches."""
    named = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
    return [file for file in named if Path(file).is_file()]


class LaboratoryRows(RowSource):
    """Rows that the built-in laboratory makes.

    Args:
        path: ``lab:<name>``.
        split: One of the laboratory's splits.
    """

    def __init__(self, path: str, split: str) -> None:
        from act_lightning.lab.abilities import rows  # here, because few runs need it

        self.path = path
        self.rows = rows(path.removeprefix(LABORATORY), split)

    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows; places read ``lab:name row number``."""
        return ((f"{self.path} row {number}", row) for number, row in enumerate(self.rows, start=1))

    def fingerprint(self) -> str:
        """SHA-256 over the rows."""
        return hashlib.sha256(json.dumps(self.rows, sort_keys=True).encode()).hexdigest()
