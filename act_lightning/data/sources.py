"""Raw rows, each with the place it stands at: from a JSONL or Parquet file, the hub, or the laboratory."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from act_lightning.data.settings import AbilityData
from act_lightning.errors import ActError, Fault

Row = dict[str, Any]
LocatedRow = tuple[str, Row]
Kind = Literal["lab", "jsonl", "parquet", "hub", "unknown"]

LABORATORY = "lab:"
_MEANINGLESS: dict[Kind, tuple[str, ...]] = {
    "jsonl": ("name", "split", "revision"),
    "parquet": ("name", "split", "revision"),
    "lab": ("name", "revision"),
    "hub": (),
}
_HUB_ID = re.compile(r"(?![.-])[\w.-]+(/[\w.-]+)?")
_ONE_OBJECT = 'Write one JSON object per line, such as {"prompt": "…", "answer": "…"}.'


def kind_of(path: str) -> Kind:
    """What ``path`` names.

    >>> kind_of("data/science-ar.jsonl"), kind_of("meta-math/MetaMathQA"), kind_of("lab:words-de")
    ('jsonl', 'hub', 'lab')
    >>> kind_of("data/science/ar.csv")
    'unknown'
    """
    if path.startswith(LABORATORY):
        return "lab"
    if path.endswith(".jsonl"):
        return "jsonl"
    if path.endswith(".parquet"):
        return "parquet"
    return "hub" if _HUB_ID.fullmatch(path) and not Path(path).exists() else "unknown"


def source_faults(settings: AbilityData, where: str) -> list[Fault]:
    """What is wrong with ``path``, ``name``, ``split`` and ``revision``, as far as no data need be read.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, such as ``data.abilities.math-en``.
    """
    kind = kind_of(settings.path)
    if kind == "unknown":
        remedy = "Name a file that ends in .jsonl or .parquet, a hub id (owner/name), or lab:<name>."
        return [Fault(f"{where}.path", settings.path, "must name a data set of a known kind", remedy)]
    faults = []
    if kind in ("jsonl", "parquet") and not Path(settings.path).is_file():
        faults.append(Fault(f"{where}.path", settings.path, "must be an existing file", "Check the path."))
    for setting in _MEANINGLESS[kind]:
        if (value := getattr(settings, setting)) is not None:
            rule = f"has no meaning for {settings.path}"
            faults.append(Fault(f"{where}.{setting}", value, rule, "Leave it out; it belongs to hub data sets."))
    return faults


def open_rows(settings: AbilityData, where: str) -> Iterator[LocatedRow]:
    """Every row of a data set in its order, each with the place it stands at (``data/science-ar.jsonl:3``).

    Args:
        settings: The settings of one data set.
        where: Its place in the config, for messages.

    Raises:
        ActError: While iterating, at the first row that cannot be read.
    """
    match kind_of(settings.path):
        case "jsonl":
            return _jsonl(settings.path, where)
        case "parquet":
            return _numbered(settings.path, _parquet(settings.path, where))
        case "lab":
            return _numbered(settings.path, _laboratory(settings))
        case _:
            return _numbered(settings.path, load_from_hub(settings, where))


def _numbered(path: str, rows: Iterator[Row]) -> Iterator[LocatedRow]:
    return ((f"{path} row {number}", row) for number, row in enumerate(rows, start=1))


def _jsonl(path: str, where: str) -> Iterator[LocatedRow]:
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", _json_object(line, f"{path}:{number}")
    except OSError as error:
        raise ActError(Fault(f"{where}.path", path, f"cannot be read: {error}", "Check the file.")) from error


def _json_object(line: bytes, place: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        shown = line.decode("utf-8", errors="replace").strip()
        raise ActError(Fault(place, shown, f"is not JSON in UTF-8: {error}", _ONE_OBJECT)) from error
    if not isinstance(row, dict):
        raise ActError(Fault(place, row, "must be an object", _ONE_OBJECT))
    return row


def _parquet(path: str, where: str) -> Iterator[Row]:
    import pyarrow  # here, because most runs read no Parquet
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ActError(Fault(f"{where}.path", path, f"cannot be read: {error}", "Check the file.")) from error


def _laboratory(settings: AbilityData) -> Iterator[Row]:
    from act_lightning.laboratory import rows  # here, because few runs need it

    return iter(rows(settings.path.removeprefix(LABORATORY), settings.split or "train"))


def load_from_hub(settings: AbilityData, where: str) -> Iterator[Row]:
    """The rows of a hub data set, downloaded at first use.

    Args:
        settings: The settings of one data set whose path is a hub id.
        where: Its place in the config, for messages.

    Raises:
        ActError: If the hub, the data set, its configuration or its split is not to be had, or the split is ambiguous.
    """
    import datasets  # here, because it takes a second that runs on local files need not wait

    try:
        data = datasets.load_dataset(settings.path, settings.name, split=settings.split, revision=settings.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        remedy = "Check id, name, split and revision, and the connection to the hub."
        raise ActError(Fault(f"{where}.path", settings.path, f"cannot be loaded: {error}", remedy)) from error
    if isinstance(data, dict):
        if len(data) > 1:
            remedy = f"Choose one of {', '.join(data)}."
            raise ActError(Fault(f"{where}.split", settings.split, "must name one split", remedy))
        (data,) = data.values()
    return iter(data)


def source_fingerprint(settings: AbilityData, where: str) -> str | None:
    """SHA-256 of what a source holds: a file's bytes, a hub data set's own fingerprint, the laboratory's rows.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, for messages.
    """
    kind = kind_of(settings.path)
    if kind in ("jsonl", "parquet"):
        with open(settings.path, "rb") as file:
            return kind + hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for _, row in open_rows(settings, where):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return kind + digest.hexdigest()
