r"""The setting ``columns``: which columns of a row are read, and under which of our names.

A value without braces is the name of a column. A value with braces is a text made from columns, in which ``{name}``
stands for the column of that name, and ``{{`` and ``}}`` for braces: ``"{question}\n{context}"``,
``"{question} Put it in \\boxed{{}}."``. So the two never clash; a column whose own name holds braces cannot be named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping

from act_lightning.data.reading.row_source import Row
from act_lightning.errors import ActError, Fault

_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


def column_faults(
    columns: Mapping[str, str] | None, known: Collection[str], lists: Collection[str], where: str
) -> list[Fault]:
    """Names that no shape of rows has, columns named twice, and texts that cannot be made.

    Args:
        columns: Our name of a column to the data set's name of it, or to a text made from columns.
        known: Our names of columns.
        lists: Those of them that hold lists of turns, not text.
        where: The place of the data set's settings in the config.
    """
    setting, columns = f"{where}.columns", columns or {}
    rule, remedy = f"must be one of {', '.join(sorted(known))}", "Write {our name: the file's name}."
    faults = [Fault(setting, name, rule, remedy) for name in columns if name not in known]
    plain = [theirs for theirs in columns.values() if not _is_text(theirs)]
    if len(set(plain)) < len(plain):
        faults.append(Fault(setting, dict(columns), "must name each column once", "Drop one of the two."))
    return faults + [fault for ours, theirs in columns.items() for fault in _text_faults(ours, theirs, lists, setting)]


def renamed(row: Row, columns: Mapping[str, str], place: str) -> Row:
    """A row under our names; columns that ``columns`` reads are there under no other name.

    Args:
        row: One row as it was read.
        columns: Our name of a column to the data set's name of it, or to a text made from columns.
        place: Where the row stands, for messages.

    Raises:
        ActError: If a column is missing, or is no part of a text.

    >>> renamed({"q": "1 + 1?", "hint": "add", "a": "2"}, {"prompt": "{q} ({hint})", "answer": "a"}, "sums.jsonl:1")
    {'prompt': '1 + 1? (add)', 'answer': '2'}
    """
    if not columns:
        return row
    read = {name for theirs in columns.values() for name in _names(theirs)}
    missing = sorted(read.difference(row))
    if missing:
        remedy = f"The row has {', '.join(row)}: mend columns or the row."
        raise ActError(Fault(f"{place}, columns", missing, "must all be there", remedy))
    rest = {name: value for name, value in row.items() if name not in read}
    return rest | {ours: _filled(row, theirs, place) for ours, theirs in columns.items()}


def _is_text(theirs: str) -> bool:
    return "{" in theirs or "}" in theirs


def _names(theirs: str) -> list[str]:
    if not _is_text(theirs):
        return [theirs]
    return [part[1] for part in _PART.finditer(theirs) if part[1]]


def _text_faults(ours: str, theirs: str, lists: Collection[str], setting: str) -> list[Fault]:
    if not _is_text(theirs):
        return []
    if ours in lists:
        return [Fault(f"{setting}.{ours}", theirs, "must name a column that holds a list", "Leave out the braces.")]
    loose = [part[0] for part in _PART.finditer(theirs) if part[0] in ("{", "}")]
    if _names(theirs) and not loose:
        return []
    rule = "must hold {column}, and no brace without its pair"
    return [Fault(f"{setting}.{ours}", theirs, rule, "Write {{ and }} for braces that belong to the text.")]


def _filled(row: Row, theirs: str, place: str) -> object:
    if not _is_text(theirs):
        return row[theirs]
    return _PART.sub(lambda part: _word(row[part[1]], part[1], place) if part[1] else part[0][0], theirs)


def _word(value: object, column: str, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    remedy = "Mend the row, or leave it out with filter."
    raise ActError(Fault(f"{place}, {column}", value, "must be text or a number to be part of a text", remedy))
