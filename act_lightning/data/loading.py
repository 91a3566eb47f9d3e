"""Where rows come from: local files, folders of ``save_to_disk``, the hub, or the built-in lab."""

from __future__ import annotations

import glob
import hashlib
import json
import operator
import random
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from act_lightning.data.ability_data import AbilityData, PerGroup
from act_lightning.data.files import READERS, FileRows, LocatedRow, Row, RowSource, extension
from act_lightning.defaults import LABORATORY
from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    import datasets


Data = TypeVar("Data")

_DATASET_ROWS = 1000  # read at once


@dataclass
class DatasetRows(RowSource):
    """The rows of a ``datasets.Dataset``, which is memory-mapped: any row can be read directly."""

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

_HUB_SETTINGS = ("name", "split", "revision", "streaming")
_HUB_ID = re.compile(r"(?![.-])[\w.-]+(/[\w.-]+)?")


def source_kind(path: str) -> SourceKind:
    """The kind of data set that ``path`` names.

    >>> source_kind("data/science-ar.jsonl"), source_kind("meta-math/MetaMathQA"), source_kind("lab:words-de")
    ('file', 'hub', 'lab')
    >>> source_kind("data/science/ar.txt")
    'unknown'
    """
    if path.startswith(LABORATORY):
        return "lab"
    if extension(path) in READERS:
        return "file"
    if any(Path(path, name).is_file() for name in ("state.json", "dataset_dict.json")):  # as save_to_disk writes them
        return "folder"
    return "hub" if _HUB_ID.fullmatch(path) and not Path(path).exists() else "unknown"


def source_issues(settings: AbilityData, where: str) -> list[ConfigIssue]:
    """Issues of ``path`` and the settings that depend on it, without reading data."""
    try:
        kind = source_kind(settings.path)
        missing = kind == "file" and not _matching_files(settings.path)
    except OSError as error:  # such as a name that is too long
        return [ConfigIssue(f"{where}.path", settings.path, f"must be a path ({error.strerror})", "Check the path.")]
    if kind == "unknown":
        endings = ", ".join(f".{name}" for name in READERS)
        hint = f"Name a file that ends in {endings}, a folder of save_to_disk, a hub id (owner/name), or lab:<name>."
        return [ConfigIssue(f"{where}.path", settings.path, "must name a data set of a known kind", hint)]
    issues = []
    if missing:
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

            return LabRows(settings.path, rows(settings.path.removeprefix(LABORATORY), settings.split or "train"))
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
    """A hub data set: downloaded at first use, or streamed."""
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


Condition = Callable[[Row, str], bool]
"""Whether a row passes, given the row and its location."""
Item = TypeVar("Item")

_COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_EQUALITY = re.compile(r"\s*(?P<column>.+?)\s*(?P<sign>==|!=)\s*(?P<value>.*?)\s*", re.DOTALL)
_MEMBERSHIP = re.compile(r"\s*(?P<column>.+?)\s+(?P<sign>not\s+in|in)\s*\[(?P<value>.*)\]\s*", re.DOTALL)
_INEQUALITY = re.compile(
    r"\s*(?P<column>.+?)\s*(?P<sign><=|>=|<|>)\s*(?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*"
)


def selection_issues(settings: AbilityData, where: str) -> list[ConfigIssue]:
    """Issues of the settings that select rows."""
    problem = "must read column == value or column != value, column in [a, b] or not in, or column >= number or < <= >"
    hint = "Write, for example, subject == physics, without quotes."
    conditions = [settings.filter] if isinstance(settings.filter, str) else settings.filter or []
    issues = [ConfigIssue(f"{where}.filter", text, problem, hint) for text in conditions if not parse_condition(text)]
    quota = settings.per_group
    bounds = [(where, settings.limit, settings.skip)]
    bounds += [] if quota is None else [(f"{where}.per_group", quota.limit, quota.skip)]
    for setting, limit, skip in bounds:
        if limit is not None and limit < 1:
            issues.append(ConfigIssue(f"{setting}.limit", limit, "must be at least 1", "Write null for every row."))
        if skip < 0:
            issues.append(ConfigIssue(f"{setting}.skip", skip, "must be at least 0", "Write 0 to skip none."))
    if quota and quota.groups is not None and not 0 < len(set(quota.groups)) == len(quota.groups):
        hint = "Write null for every group there is."
        issues.append(ConfigIssue(f"{where}.per_group.groups", quota.groups, "must name groups, each once", hint))
    if settings.streaming and settings.shuffle_seed is not None and settings.limit is None and quota is None:
        problem = "must keep the rows that a shuffle selects in memory, and no limit bounds them"
        hint = "Add limit or per_group, or leave out streaming."
        issues.append(ConfigIssue(f"{where}.streaming", True, problem, hint))
    return issues


def parse_condition(text: str) -> Condition | None:
    """The condition that an entry of the setting ``filter`` describes, or ``None`` if it describes none.

    >>> condition = parse_condition("subject in [physics, chemistry]")
    >>> condition({"subject": "physics"}, "x.jsonl:1"), condition({"subject": "biology"}, "x.jsonl:2")
    (True, False)
    """
    if match := _EQUALITY.fullmatch(text) or _MEMBERSHIP.fullmatch(text):
        column, sign, value = match["column"], match["sign"], match["value"]
        is_equality = sign in ("==", "!=")
        values = [value] if is_equality else [item.strip() for item in value.split(",")]
        is_member = sign in ("==", "in")
        return lambda row, location: (_cell_text(row, column, location, "filter") in values) is is_member
    if match := _INEQUALITY.fullmatch(text):
        column, compare, bound = match["column"], _COMPARISONS[match["sign"]], float(match["value"])

        def passes(row: Row, location: str) -> bool:
            value = _cell(row, column, location, "filter")
            try:
                return bool(compare(float(str(value)), bound))
            except ValueError as error:
                hint = "Correct the row, or compare as text with == or !=."
                issue = ConfigIssue(f"{location}, {column}", value, "must be a number, for filter", hint)
                raise ActError(issue) from error

        return passes
    return None


def _cell(row: Row, column: str, location: str, setting: str) -> object:
    if column not in row:
        hint = f"The row has {', '.join(row)}: correct {setting} or the row."
        raise ActError(ConfigIssue(f"{location}, {setting}", column, "must be a column of every row", hint))
    return row[column]


def _cell_text(row: Row, column: str, location: str, setting: str) -> str:
    """A column's value as text: as it is, or else in JSON."""
    value = _cell(row, column, location, setting)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def select_rows(source: RowSource, settings: AbilityData, where: str) -> Iterator[LocatedRow]:
    """The rows that are used, in their order, read as they are consumed.

    Without a shuffle the source is read once, and no further than necessary. With a shuffle it is read twice: first to
    find the rows that pass the filter, of which only the numbers are kept, then to read the rows.

    Raises:
        ActError: If a row lacks a column that ``filter`` or ``per_group`` names, or a group has too few rows.
    """
    texts = [settings.filter] if isinstance(settings.filter, str) else settings.filter or []
    conditions = [condition for text in texts if (condition := parse_condition(text))]

    def passes(located: LocatedRow) -> bool:
        return all(condition(located[1], located[0]) for condition in conditions)

    def group_of(located: LocatedRow) -> str:
        if settings.per_group is None:
            return ""
        return _cell_text(located[1], settings.per_group.column, located[0], "per_group.column")

    if settings.shuffle_seed is None:
        return _apply_limits(filter(passes, source), group_of, settings, where)
    numbers, groups = array("q"), list[str]()
    for number, located in enumerate(source):
        if passes(located):
            numbers.append(number)
            groups.append(sys.intern(group_of(located)))
    order = array("q", range(len(numbers)))
    random.Random(settings.shuffle_seed).shuffle(order)
    selected = _apply_limits(order, groups.__getitem__, settings, where)
    return source.select(array("q", (numbers[position] for position in selected)))


def _apply_limits(
    items: Iterable[Item], group_of: Callable[[Item], str], settings: AbilityData, where: str
) -> Iterator[Item]:
    if settings.per_group is not None:
        items = _take_per_group(items, group_of, settings.per_group, f"{where}.per_group")
    stop = None if settings.limit is None else settings.skip + settings.limit
    return islice(items, settings.skip, stop)


def _take_per_group(
    items: Iterable[Item], group_of: Callable[[Item], str], quota: PerGroup, setting: str
) -> Iterator[Item]:
    counts, stop = Counter[str](), quota.skip + quota.limit
    incomplete = set(quota.groups or ())
    for item in items:
        group = group_of(item)
        counts[group] += 1
        if (quota.groups is None or group in quota.groups) and quota.skip < counts[group] <= stop:
            yield item
        if counts[group] == stop:
            incomplete.discard(group)
            if quota.groups is not None and not incomplete:
                return
    if incomplete:
        groups = sorted(incomplete)
        available = ", ".join(f"{counts[group]} of {group}" for group in groups)
        hint = f"The groups are {', '.join(f'{name} ({count})' for name, count in counts.most_common(20))}."
        problem = f"must have {stop} rows each, skipped ones included, but after filter there are {available}"
        raise ActError(ConfigIssue(f"{setting}.groups", groups, problem, hint))
