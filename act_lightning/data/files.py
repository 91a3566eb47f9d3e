"""Rows of local files with their locations: JSONL, JSON, CSV and Parquet, read row by row.

``datasets`` would give every row the columns and types of all rows, could not say which line is broken, and would copy
each file into its cache first.
"""

from __future__ import annotations

import csv
import faulthandler
import hashlib
import json
import os
import re
import warnings
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TextIO

from act_lightning.errors import ActError, ConfigIssue, raise_if_any

if TYPE_CHECKING:
    from pyarrow import Array
    from pyarrow.parquet import FileMetaData, ParquetFile

Row = dict[str, Any]
LocatedRow = tuple[str, Row]
"""A row and its location, such as ``data/science-ar.jsonl:3``."""

_MAX_ROWS_HELD = 100_000


class RowSource(ABC):
    """Rows in a fixed order, each with its location."""

    @abstractmethod
    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows, read as they are consumed, up to the first that cannot be read, where an ActError is raised."""

    @abstractmethod
    def fingerprint(self) -> str | None:
        """A text that changes whenever the rows do, or ``None`` if that cannot be known."""

    def select(self, indices: Sequence[int]) -> Iterator[LocatedRow]:
        """Some rows in the order of ``indices``, which count from 0 and do not repeat.

        The source is read once for every 100,000 rows, so that a sequential source can be shuffled in bounded memory.
        """
        for start in range(0, len(indices), _MAX_ROWS_HELD):
            window = indices[start : start + _MAX_ROWS_HELD]
            members = set(window)
            rows = {index: row for index, row in enumerate(islice(self, max(window) + 1)) if index in members}
            yield from map(rows.__getitem__, window)


_OBJECT_HINT = 'Write one JSON object per line, such as {"prompt": "…", "answer": "…"}.'
_MAX_CSV_FIELD = 2**31 - 1
_PARQUET_ROWS = 1024  # read at once
_PARQUET_BYTES = 1 << 28  # of a column of a row group; more must not come from a small file
_PARQUET_VALUES = 1_000_000  # of nested columns
_MAX_RATIO = 200  # of bytes in memory to bytes on disk; text has 3 to 20


@dataclass
class FileRows(RowSource):
    """The rows of one or more files, one file after the other, each read as its extension says."""

    paths: Sequence[str]
    where: str

    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows, located as ``path:line``, or as ``path row number`` in files without lines."""
        for path in self.paths:
            try:
                yield from READERS[extension(path)](path)
            except UnicodeDecodeError as error:
                raise ActError(ConfigIssue(path, error.reason, "must be text in UTF-8", "Save it as UTF-8.")) from error
            except OSError as error:
                raise self._unreadable(path, error) from error

    def fingerprint(self) -> str:
        """SHA-256 over the extensions and the bytes of all files."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                with open(path, "rb") as file:
                    digest.update(extension(path).encode() + hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise self._unreadable(path, error) from error
        return digest.hexdigest()

    def _unreadable(self, path: str, error: OSError) -> ActError:
        return ActError(ConfigIssue(f"{self.where}.path", path, f"cannot be read: {error}", "Check the file."))


def extension(path: str) -> str:
    """The file extension without its dot: ``jsonl`` for ``data/science-ar.jsonl``."""
    return path.rpartition(".")[2]


def _read_jsonl(path: str) -> Iterator[LocatedRow]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.removeprefix(BOM_UTF8).strip():
                continue
            location = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                text = line.decode("utf-8", errors="replace").strip()
                reason = (
                    f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
                )
                raise ActError(ConfigIssue(location, text, f"is not JSON in UTF-8: {reason}", _OBJECT_HINT)) from error
            yield location, _require_object(row, location)


def _require_object(row: object, location: str) -> Row:
    if not isinstance(row, dict):
        raise ActError(ConfigIssue(location, row, "must be an object", _OBJECT_HINT))
    return row


_BLANK = re.compile(r"[ \t\n\r]*")
_CHUNK = 1 << 18  # characters
_LONGEST_TOKEN = 16  # characters; no JSON token but strings and numbers is longer


class _JsonScanner:
    """Decodes one JSON value after the other from a text file, of which it holds a chunk at a time."""

    def __init__(self, file: TextIO, path: str) -> None:
        self.file, self.path = file, path
        self.text, self.pos = "", 0

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            if match := _BLANK.match(self.text, self.pos):
                self.pos = match.end()
            if self.pos < len(self.text) or not self._read_more():
                return self.text[self.pos : self.pos + 1]

    def decode(self, row: int) -> object:
        """The next value; more of the file is read where the chunk ends within it."""
        self.peek()
        while True:
            try:
                value, self.pos = json.JSONDecoder().raw_decode(self.text, self.pos)
            except json.JSONDecodeError as error:
                at_end = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _LONGEST_TOKEN
                if not at_end or not self._read_more():
                    raise self.error(row, error.msg) from error
            except RecursionError as error:
                raise self.error(row, "it is nested too deeply") from error
            else:
                return value

    def error(self, row: int, reason: str) -> ActError:
        """The error of a row, with the text from the current position."""
        hint = 'Write an array of objects, such as [{"prompt": "…", "answer": "…"}].'
        return ActError(ConfigIssue(f"{self.path} row {row}", self.text[self.pos :], f"is not JSON: {reason}", hint))

    def _read_more(self) -> bool:
        chunk = self.file.read(_CHUNK)
        self.text, self.pos = self.text[self.pos :] + chunk, 0
        return bool(chunk)


def _read_json(path: str) -> Iterator[LocatedRow]:
    """The objects of an array, or of lines as in JSONL."""
    with open(path, encoding="utf-8-sig") as file:
        scanner = _JsonScanner(file, path)
        if scanner.peek() != "[":
            yield from _read_jsonl(path)
            return
        scanner.pos += 1
        row, mark = 1, scanner.peek()
        while mark != "]":
            location = f"{path} row {row}"
            yield location, _require_object(scanner.decode(row), location)
            mark = scanner.peek()
            if mark not in (",", "]"):
                raise scanner.error(row, f"expected ',' or ']', found {repr(mark) if mark else 'the end of the file'}")
            if mark == ",":
                scanner.pos += 1
                row += 1
        scanner.pos += 1
        if rest := scanner.peek():
            raise scanner.error(row, f"unexpected {rest!r} after the array")


def _read_csv(path: str) -> Iterator[LocatedRow]:
    csv.field_size_limit(_MAX_CSV_FIELD)  # the default of 128 KiB is too small for some answers
    header: list[str] | None = None
    with open(path, newline="", encoding="utf-8-sig") as text:
        reader = csv.reader(text, strict=True)
        while True:
            location = f"{path}:{reader.line_num + 1}"
            try:
                fields = next(reader, None)
            except csv.Error as error:
                hint = "Quote fields that contain commas, quotes or line breaks, and double the quotes within."
                issue = ConfigIssue(location, "the row that starts here", f"is not CSV: {error}", hint)
                raise ActError(issue) from error
            if fields is None:
                return
            if header is None:
                header = fields
                if len(set(header)) < len(header):
                    hint = "Rename or drop columns."
                    raise ActError(ConfigIssue(location, header, "must name each column once", hint))
            elif fields:  # a blank line has none
                if len(fields) != len(header):
                    problem = f"must have {len(header)} fields as the header has, but has {len(fields)}"
                    hint = "Quote fields that contain commas or line breaks."
                    raise ActError(ConfigIssue(location, fields, problem, hint))
                yield location, dict(zip(header, fields, strict=True))


def _read_parquet(path: str) -> Iterator[LocatedRow]:
    import pyarrow  # here, because most runs read no Parquet
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            raise_if_any(_parquet_issues(path, file.metadata))
            groups = range(file.num_row_groups)
            batches = chain.from_iterable(
                file.iter_batches(_rows_at_once(path, file, group), row_groups=[group]) for group in groups
            )
            rows = ((batch.schema.names, values) for batch in batches for values in zip(*batch.columns, strict=True))
            for number, (names, values) in enumerate(rows, 1):  # one row as Python objects at a time
                row = zip(names, values, strict=True)
                yield f"{path} row {number}", {name: value.as_py() for name, value in row}
    except (pyarrow.ArrowException, OverflowError) as error:
        raise OSError(str(error)) from error


def _parquet_issues(path: str, metadata: FileMetaData) -> list[ConfigIssue]:
    """Columns that would fill the memory from a few bytes on disk.

    Raises:
        OSError: Their metadata cannot be read.
    """
    if not _ends_well(partial(_visit_columns, metadata)):
        raise OSError("the metadata of its columns is damaged")
    issues = []
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        for column in (rows.column(index) for index in range(rows.num_columns)):
            stored = max(column.total_compressed_size, 1)
            size, count = column.total_uncompressed_size, column.num_values - 1000 * rows.num_rows
            if (size > _PARQUET_BYTES and size > _MAX_RATIO * stored) or count > max(_PARQUET_VALUES, 1000 * stored):
                problem = (
                    f"must not hold {size:,} bytes in {column.num_values:,} values, which {stored:,} bytes expand to"
                )
                hint = "Write the file again in smaller row groups, or leave the column out."
                issues.append(ConfigIssue(f"{path}, row group {group}", column.path_in_schema, problem, hint))
    return issues


def _visit_columns(metadata: FileMetaData) -> None:
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        for index in range(rows.num_columns):
            rows.column(index)


def _ends_well(act: Callable[[], object]) -> bool:
    """Whether ``act`` ends without an error in a fork of this process: pyarrow calls some code that ends its process.

    https://github.com/apache/arrow/issues/45283 shows where: an exception of C++ leaves a function declared without.
    """
    if not hasattr(os, "fork"):
        return True
    with warnings.catch_warnings():  # Python 3.12 warns where there are threads, of which the child uses none
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where C++ says why
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _rows_at_once(path: str, file: ParquetFile, group: int) -> int:
    """How many rows of a group fit into memory even if each repeats the longest text of its columns' dictionaries."""
    import pyarrow.compute
    import pyarrow.parquet

    columns = [file.schema.column(index) for index in range(len(file.schema))]
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    rows = file.metadata.row_group(group)
    values = sum(rows.column(index).num_values for index in range(rows.num_columns))
    with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as with_dictionaries:
        batch = next(with_dictionaries.iter_batches(1, row_groups=[group]), None)
        dictionaries = [] if batch is None else [array for column in batch.columns for array in _dictionaries(column)]
    longest = sum(pyarrow.compute.max(pyarrow.compute.binary_length(array)).as_py() or 0 for array in dictionaries)
    per_row = max(values // max(rows.num_rows * len(columns), 1), 1)
    return max(1, min(_PARQUET_ROWS, _PARQUET_BYTES // 4 // max(int(longest) * int(per_row), 1)))


def _dictionaries(array: Array) -> Iterator[Array]:
    """The dictionaries of an array's texts, nested ones included."""
    import pyarrow

    if pyarrow.types.is_dictionary(array.type):
        yield array.dictionary
    elif pyarrow.types.is_struct(array.type):
        for child in array.flatten():
            yield from _dictionaries(child)
    elif pyarrow.types.is_nested(array.type) and hasattr(array, "values"):
        yield from _dictionaries(array.values)


READERS: dict[str, Callable[[str], Iterator[LocatedRow]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
"""The reader of a file by its extension."""
