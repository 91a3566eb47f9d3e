"""Rows of local files: JSONL, JSON, CSV and Parquet."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import re
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

from act_lightning.data.ability_data import AbilityData
from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    import datasets


Row = dict[str, Any]
LocatedRow = tuple[str, Row]

_MAX_ROWS_HELD = 100_000


class RowSource(ABC):
    """Rows in a fixed order, each with the place it stands at, such as ``data/science-ar.jsonl:3``."""

    @abstractmethod
    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows, from the first, read while they are used.

        Raises:
            ActError: At the first row that cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str | None:
        """A text that differs whenever the rows do, or ``None`` if this cannot be known."""

    def at(self, numbers: Sequence[int]) -> Iterator[LocatedRow]:
        """Some rows, in the order asked for.

        Read in sweeps over all rows, so that never more than 100,000 of them are held: a source that is read in order
        can be shuffled without memory for all of it.

        Args:
            numbers: Rows counted from 0, none of them twice.
        """
        for start in range(0, len(numbers), _MAX_ROWS_HELD):
            window = numbers[start : start + _MAX_ROWS_HELD]
            wanted, end = set(window), max(window) + 1
            found = {number: row for number, row in enumerate(islice(self, end)) if number in wanted}
            yield from map(found.__getitem__, window)


_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_CHUNK = 1 << 18
_LONGEST_MARK = 16
"""No token of JSON is longer, but strings and numbers."""


class JsonArray:
    """The elements of an array in a text file.

    Args:
        text: The file, read from where it stands.
        path: Its path, for messages.

    >>> from io import StringIO
    >>> list(JsonArray(StringIO('[{"prompt": "1?"}, {"prompt": "2?"}]'), "x.json"))
    [{'prompt': '1?'}, {'prompt': '2?'}]
    """

    def __init__(self, text: TextIO, path: str) -> None:
        self.file = text
        self.path = path
        self._text = ""
        self._at = 0

    def begins(self) -> bool:
        """Whether an array begins here."""
        return self._mark() == "["

    def __iter__(self) -> Iterator[object]:
        """The elements in their order.

        Raises:
            ActError: With the number of the row, at the first thing that is not JSON.
        """
        self._take("[", 1)
        if self._mark() == "]":
            self._take("]", 1)
        else:
            number = 1
            yield self._element(number)
            while self._mark() == ",":
                self._take(",", number)
                number += 1
                yield self._element(number)
            self._take("]", number)
        if rest := self._mark():
            raise self._broken(number, f"{rest!r} follows the array's end")

    def _element(self, number: int) -> object:
        self._mark()
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error) or not self._more():
                    raise self._broken(number, error.msg) from error
            except RecursionError as error:
                raise self._broken(number, "it is nested too deep") from error
            else:
                return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_MARK

    def _take(self, mark: str, number: int) -> None:
        if self._mark() != mark:
            raise self._broken(number, f"{mark!r} must follow, and {self._mark()!r} does")
        self._at += 1

    def _mark(self) -> str:
        """The next character that is not blank, or nothing at the end."""
        while True:
            self._at = match.end() if (match := _BLANK.match(self._text, self._at)) else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        chunk = self.file.read(_CHUNK)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)

    def _broken(self, number: int, why: str) -> ActError:
        shown = self._text[self._at :]
        hint = 'Write an array of objects, such as [{"prompt": "…", "answer": "…"}].'
        return ActError(ConfigIssue(f"{self.path} row {number}", shown, f"is not JSON: {why}", hint))


_ONE_OBJECT = 'Write one JSON object per line, such as {"prompt": "…", "answer": "…"}.'
_LONGEST_FIELD = 2**31 - 1
_PARQUET_ROWS = 1024


class FileRows(RowSource):
    """The rows of one file or of several of a kind, one after the other.

    Args:
        paths: The files; their endings say how they are read.
        where: The data set's place in the config, for messages.
    """

    def __init__(self, paths: Sequence[str], where: str) -> None:
        self.paths = paths
        self.where = where

    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows; places read ``path:line``, or ``path row number`` where a file has no lines."""
        for path in self.paths:
            try:
                yield from READERS[ending(path)](path)
            except UnicodeDecodeError as error:
                raise ActError(ConfigIssue(path, error.reason, "must be text in UTF-8", "Save it as UTF-8.")) from error
            except OSError as error:
                raise self._unreadable(path, error) from error

    def fingerprint(self) -> str:
        """SHA-256 over the endings and the bytes of all files."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                with open(path, "rb") as file:
                    digest.update(ending(path).encode() + hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise self._unreadable(path, error) from error
        return digest.hexdigest()

    def _unreadable(self, path: str, error: Exception) -> ActError:
        return ActError(ConfigIssue(f"{self.where}.path", path, f"cannot be read: {error}", "Check the file."))


def ending(path: str) -> str:
    """The last ending of a path, without its dot: ``jsonl`` for ``data/science-ar.jsonl``."""
    return path.rpartition(".")[2]


def _jsonl(path: str) -> Iterator[LocatedRow]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.removeprefix(BOM_UTF8).strip():
                yield f"{path}:{number}", _json_object(line, f"{path}:{number}")


def _json_object(line: bytes, place: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        shown = line.decode("utf-8", errors="replace").strip()
        why = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise ActError(ConfigIssue(place, shown, f"is not JSON in UTF-8: {why}", _ONE_OBJECT)) from error
    return _object(row, place)


def _object(row: object, place: str) -> Row:
    if not isinstance(row, dict):
        raise ActError(ConfigIssue(place, row, "must be an object", _ONE_OBJECT))
    return row


def _json(path: str) -> Iterator[LocatedRow]:
    """The objects of an array, or else of lines as in JSONL."""
    with open(path, encoding="utf-8-sig") as text:
        array = JsonArray(text, path)
        if not array.begins():
            yield from _jsonl(path)
            return
        for number, value in enumerate(array, start=1):
            place = f"{path} row {number}"
            yield place, _object(value, place)


def _csv(path: str) -> Iterator[LocatedRow]:
    csv.field_size_limit(_LONGEST_FIELD)  # by default a field ends at 128 KiB, and answers may be longer
    with open(path, newline="", encoding="utf-8-sig") as text:
        reader = csv.reader(text, strict=True)
        header = _next_fields(reader, f"{path}:1") or []
        if len(set(header)) < len(header):
            raise ActError(ConfigIssue(f"{path}:1", header, "must name each column once", "Rename or drop columns."))
        place = f"{path}:{reader.line_num + 1}"
        while (fields := _next_fields(reader, place)) is not None:
            if fields:  # a blank line has none
                yield place, _csv_row(header, fields, place)
            place = f"{path}:{reader.line_num + 1}"


def _next_fields(reader: Iterator[list[str]], place: str) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        hint = "Quote fields that hold commas, quotes or line breaks, and double the quotes within."
        raise ActError(ConfigIssue(place, "the row that starts here", f"is not CSV: {error}", hint)) from error


def _csv_row(header: list[str], fields: list[str], place: str) -> Row:
    if len(fields) != len(header):
        problem = f"must have {len(header)} fields as the header has, but has {len(fields)}"
        raise ActError(ConfigIssue(place, fields, problem, "Quote fields that hold commas or line breaks."))
    return dict(zip(header, fields, strict=True))


def _parquet(path: str) -> Iterator[LocatedRow]:
    import pyarrow  # here, because most runs read no Parquet
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error


READERS: dict[str, Callable[[str], Iterator[LocatedRow]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
}
"""How to read a file, by its ending."""


Data = TypeVar("Data")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS_AT_ONCE = 1000


def is_saved_folder(path: str) -> bool:
    """Whether ``save_to_disk`` of a data set, or of several splits, wrote this folder."""
    return any(Path(path, name).is_file() for name in ("state.json", "dataset_dict.json"))


class DatasetRows(RowSource):
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
    return StreamedRows(chosen, settings, where) if settings.streaming else DatasetRows(chosen, settings.path)


def load_from_folder(settings: AbilityData, where: str) -> DatasetRows:
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
    return DatasetRows(_one_split(data, settings, where), settings.path)


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


Kind = Literal["lab", "file", "folder", "hub", "unknown"]

LABORATORY = "lab:"
_MEANINGFUL: dict[Kind, tuple[str, ...]] = {
    "file": (),
    "folder": ("split",),
    "lab": ("split",),
    "hub": ("name", "split", "revision", "streaming"),
}
_HUB_ID = re.compile(r"(?![.-])[\w.-]+(/[\w.-]+)?")


def source_kind(path: str) -> Kind:
    """What ``path`` names.

    >>> source_kind("data/science-ar.jsonl"), source_kind("meta-math/MetaMathQA"), source_kind("lab:words-de")
    ('file', 'hub', 'lab')
    >>> source_kind("data/science/ar.txt")
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
    kind = source_kind(settings.path)
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
    match source_kind(settings.path):
        case "file":
            return FileRows(_files(settings.path), where)
        case "folder":
            return load_from_folder(settings, where)
        case "lab":
            return LabRows(settings.path, settings.split or "train")
        case _:
            return load_from_hub(settings, where)


def _files(path: str) -> list[str]:
    """The file of this name, or else those that the pattern matches."""
    named = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
    return [file for file in named if Path(file).is_file()]


class LabRows(RowSource):
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
