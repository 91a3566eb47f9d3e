"""Rows of local files, read while they are used: JSONL, JSON, CSV and Parquet."""

from __future__ import annotations

import csv
import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence

from act_lightning.data.reading.json_array import JsonArray
from act_lightning.data.reading.row_source import LocatedRow, Row, RowSource
from act_lightning.errors import ActError, Fault

_ONE_OBJECT = 'Write one JSON object per line, such as {"prompt": "…", "answer": "…"}.'
_LONGEST_FIELD = 2**31 - 1
_ROWS_AT_ONCE = 1024


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
                raise ActError(Fault(path, error.reason, "must be text in UTF-8", "Save it as UTF-8.")) from error
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
        return ActError(Fault(f"{self.where}.path", path, f"cannot be read: {error}", "Check the file."))


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
        raise ActError(Fault(place, shown, f"is not JSON in UTF-8: {why}", _ONE_OBJECT)) from error
    return _object(row, place)


def _object(row: object, place: str) -> Row:
    if not isinstance(row, dict):
        raise ActError(Fault(place, row, "must be an object", _ONE_OBJECT))
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
            raise ActError(Fault(f"{path}:1", header, "must name each column once", "Rename or drop columns."))
        place = f"{path}:{reader.line_num + 1}"
        while (fields := _next_fields(reader, place)) is not None:
            if fields:  # a blank line has none
                yield place, _csv_row(header, fields, place)
            place = f"{path}:{reader.line_num + 1}"


def _next_fields(reader: Iterator[list[str]], place: str) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        remedy = "Quote fields that hold commas, quotes or line breaks, and double the quotes within."
        raise ActError(Fault(place, "the row that starts here", f"is not CSV: {error}", remedy)) from error


def _csv_row(header: list[str], fields: list[str], place: str) -> Row:
    if len(fields) != len(header):
        rule = f"must have {len(header)} fields as the header has, but has {len(fields)}"
        raise ActError(Fault(place, fields, rule, "Quote fields that hold commas or line breaks."))
    return dict(zip(header, fields, strict=True))


def _parquet(path: str) -> Iterator[LocatedRow]:
    import pyarrow  # here, because most runs read no Parquet
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
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
