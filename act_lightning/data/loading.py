"""Where rows come from: local files, folders of ``save_to_disk``, the hub, or the built-in lab."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.files import READERS, FileRows, LocatedRow, Row, RowSource, extension
from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    import datasets

Data = TypeVar("Data")

_DATASET_ROWS = 1000  # read at once


@dataclass
class DatasetRows(RowSource):
    """The rows of one split of a ``datasets.Dataset``, which is memory-mapped: any row can be read directly."""

    data: datasets.Dataset
    path: str

    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows, located as ``path row number``."""
        return self.select(range(len(self.data)))

    def select(self, indices: Sequence[int]) -> Iterator[LocatedRow]:
        """Some rows in the order of ``indices``."""
        for start in range(0, len(indices), _DATASET_ROWS):
            part = indices[start : start + _DATASET_ROWS]
            columns = self.data[part]
            for index, values in zip(part, zip(*columns.values(), strict=True), strict=True):
                yield f"{self.path} row {index + 1}", dict(zip(columns, values, strict=True))

    def fingerprint(self) -> str:
        """The fingerprint that ``datasets`` keeps with every cached or saved data set."""
        return str(self.data._fingerprint)


@dataclass
class StreamedRows(RowSource):
    """The rows of one split of a hub data set, downloaded as they are consumed and not stored."""

    data: datasets.IterableDataset
    settings: AbilityData
    where: str

    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows, located as ``id row number``."""
        try:
            for number, row in enumerate(self.data, start=1):
                yield f"{self.settings.path} row {number}", dict(row)
        except _load_errors() as error:
            raise _hub_error(self.settings, self.where, error) from error

    def fingerprint(self) -> str | None:
        """The commit with name and split, or ``None`` if the hub does not tell the commit."""
        from huggingface_hub import HfApi

        settings, commit = self.settings, self.settings.revision
        if not re.fullmatch("[0-9a-f]{40}", commit or ""):
            try:
                commit = HfApi().dataset_info(settings.path, revision=settings.revision).sha
            except (OSError, ValueError):
                return None
        return commit and json.dumps([settings.path, settings.name, settings.split, commit])


@dataclass
class LabRows(RowSource):
    """Rows that the built-in lab generated."""

    path: str
    rows: Sequence[Row]

    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows, located as ``lab:name row number``."""
        return ((f"{self.path} row {number}", row) for number, row in enumerate(self.rows, start=1))

    def fingerprint(self) -> str:
        """SHA-256 over the rows."""
        return hashlib.sha256(json.dumps(self.rows, sort_keys=True).encode()).hexdigest()


SourceKind = Literal["lab", "file", "folder", "hub", "unknown"]

_LAB = "lab:"
_HUB_SETTINGS = ("name", "split", "revision", "streaming")
_HUB_ID = re.compile(r"(?![.-])[\w.-]+(/[\w.-]+)?")


def source_kind(path: str) -> SourceKind:
    """What ``path`` names.

    >>> source_kind("data/science-ar.jsonl"), source_kind("meta-math/MetaMathQA"), source_kind("lab:words-de")
    ('file', 'hub', 'lab')
    >>> source_kind("data/science/ar.txt")
    'unknown'
    """
    if path.startswith(_LAB):
        return "lab"
    if extension(path) in READERS:
        return "file"
    if any(Path(path, name).is_file() for name in ("state.json", "dataset_dict.json")):  # as save_to_disk writes them
        return "folder"
    return "hub" if _HUB_ID.fullmatch(path) and not Path(path).exists() else "unknown"


def source_issues(settings: AbilityData, where: str) -> list[ConfigIssue]:
    """Issues of ``path`` and the settings that depend on it, without reading data."""
    kind = source_kind(settings.path)
    if kind == "unknown":
        endings = ", ".join(f".{name}" for name in READERS)
        hint = f"Name a file that ends in {endings}, a folder of save_to_disk, a hub id (owner/name), or lab:<name>."
        return [ConfigIssue(f"{where}.path", settings.path, "must name a data set of a known kind", hint)]
    issues = []
    if kind == "file" and not _matching_files(settings.path):
        issues.append(ConfigIssue(f"{where}.path", settings.path, "must be an existing file", "Check the path."))
    for setting in _HUB_SETTINGS:
        applies = kind == "hub" or (setting == "split" and kind != "file")
        if not applies and (value := getattr(settings, setting)):
            problem, hint = f"has no meaning for {settings.path}", "Leave it out; it is a setting of hub data sets."
            issues.append(ConfigIssue(f"{where}.{setting}", value, problem, hint))
    return issues


def open_rows(settings: AbilityData, where: str) -> RowSource:
    """All rows of a data set in its order.

    Raises:
        ActError: If the data set cannot be opened, or, while iterating, at the first row that cannot be read.
    """
    match source_kind(settings.path):
        case "file":
            return FileRows(_matching_files(settings.path), where)
        case "folder":
            return _load_saved(settings, where)
        case "lab":
            from act_lightning.lab.abilities import rows  # here, because few runs need it

            return LabRows(settings.path, rows(settings.path.removeprefix(_LAB), settings.split or "train"))
        case _:
            return load_from_hub(settings, where)


def _matching_files(path: str) -> list[str]:
    """The file of this name, or else the files that match the pattern."""
    paths = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
    return [name for name in paths if Path(name).is_file()]


def _load_saved(settings: AbilityData, where: str) -> DatasetRows:
    import datasets

    try:
        data = datasets.load_from_disk(settings.path)
    except _load_errors() as error:
        issue = ConfigIssue(f"{where}.path", settings.path, f"cannot be read: {error}", "Save it again.")
        raise ActError(issue) from error
    if settings.split is not None and not isinstance(data, dict):
        problem = f"has no meaning for {settings.path}, which holds one data set without splits"
        raise ActError(ConfigIssue(f"{where}.split", settings.split, problem, "Leave it out."))
    return DatasetRows(_pick_split(data, settings, where), settings.path)


def load_from_hub(settings: AbilityData, where: str) -> RowSource:
    """A hub data set: downloaded at first use, or streamed.

    Raises:
        ActError: If the data set, its configuration or its split cannot be loaded, or the split is ambiguous.
    """
    import datasets

    options: dict[str, Any] = {"split": settings.split, "revision": settings.revision}
    if settings.streaming:
        options["streaming"] = True
    try:
        data = datasets.load_dataset(settings.path, settings.name, **options)
    except _load_errors() as error:
        raise _hub_error(settings, where, error) from error
    split = _pick_split(data, settings, where)
    return StreamedRows(split, settings, where) if settings.streaming else DatasetRows(split, settings.path)


def _pick_split(data: Data | Mapping[str, Data], settings: AbilityData, where: str) -> Data:
    """The split that is named, or the only one."""
    if not isinstance(data, Mapping):
        return data
    split = next(iter(data)) if settings.split is None and len(data) == 1 else settings.split
    if split is None or split not in data:
        hint = f"Choose one of {', '.join(data)}."
        raise ActError(ConfigIssue(f"{where}.split", settings.split, "must name one split", hint))
    return data[split]


def _load_errors() -> tuple[type[Exception], ...]:
    import datasets

    return OSError, ValueError, LookupError, RuntimeError, datasets.exceptions.DatasetsError


def _hub_error(settings: AbilityData, where: str, error: Exception) -> ActError:
    hint = "Check id, name, split and revision, and the connection to the hub."
    return ActError(ConfigIssue(f"{where}.path", settings.path, f"cannot be loaded: {error}", hint))
