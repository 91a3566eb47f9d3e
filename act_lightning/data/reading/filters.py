"""Conditions on rows: the setting ``filter``."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Sequence

from act_lightning.data.reading.row_source import Row
from act_lightning.errors import ActError, Fault

Condition = Callable[[Row, str], bool]
"""Whether a row is kept, given the row and its place."""

_NUMERIC: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_EQUAL = re.compile(r"\s*(?P<column>.+?)\s*(?P<sign>==|!=)\s*(?P<value>.*?)\s*", re.DOTALL)
_AMONG = re.compile(r"\s*(?P<column>.+?)\s+(?P<sign>not\s+in|in)\s*\[(?P<value>.*)\]\s*", re.DOTALL)
_ORDERED = re.compile(
    r"\s*(?P<column>.+?)\s*(?P<sign><=|>=|<|>)\s*(?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*"
)


def listed(filters: str | Sequence[str] | None) -> list[str]:
    """The conditions of the setting ``filter``, which may be none, one or several."""
    if filters is None:
        return []
    return [filters] if isinstance(filters, str) else list(filters)


def filter_faults(filters: str | Sequence[str] | None, setting: str) -> list[Fault]:
    """Conditions that cannot be read.

    Args:
        filters: The setting ``filter``.
        setting: Its place in the config.
    """
    rule = "must read column == value or column != value, column in [a, b] or not in, or column >= number or < <= >"
    remedy = "Write, for example, subject == physics, without quotes."
    return [Fault(setting, text, rule, remedy) for text in listed(filters) if _parsed(text) is None]


def condition(filters: str | Sequence[str] | None) -> Condition:
    """One condition for all that the setting ``filter`` says; without any, every row is kept.

    Args:
        filters: The setting ``filter``, without faults.

    >>> kept = condition(["subject in [physics, chemistry]", "score >= 0.5"])
    >>> kept({"subject": "physics", "score": 0.7}, "x:1"), kept({"subject": "biology", "score": 1}, "x:2")
    (True, False)
    """
    conditions = [parsed for text in listed(filters) if (parsed := _parsed(text)) is not None]
    return lambda row, place: all(holds(row, place) for holds in conditions)


def cell(row: Row, column: str, place: str, setting: str) -> str:
    """A column's value as text: as it is, or else as JSON writes it.

    Args:
        row: A row.
        column: One of its columns.
        place: Where it stands, for messages.
        setting: The setting that asks for the column, for messages.

    Raises:
        ActError: If the row has no such column.
    """
    value = _value(row, column, place, setting)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _value(row: Row, column: str, place: str, setting: str) -> object:
    if column not in row:
        remedy = f"The row has {', '.join(row)}: mend {setting} or the row."
        raise ActError(Fault(f"{place}, {setting}", column, "must be a column of every row", remedy))
    return row[column]


def _parsed(text: str) -> Condition | None:
    if match := _EQUAL.fullmatch(text):
        return _one_of(match["column"], [match["value"]], match["sign"] == "==")
    if match := _AMONG.fullmatch(text):
        return _one_of(match["column"], [value.strip() for value in match["value"].split(",")], match["sign"] == "in")
    if match := _ORDERED.fullmatch(text):
        return _ordered(match["column"], _NUMERIC[match["sign"]], float(match["value"]))
    return None


def _one_of(column: str, values: Sequence[str], wanted: bool) -> Condition:
    return lambda row, place: (cell(row, column, place, "filter") in values) is wanted


def _ordered(column: str, compare: Callable[[float, float], bool], bound: float) -> Condition:
    def holds(row: Row, place: str) -> bool:
        value = _value(row, column, place, "filter")
        try:
            return compare(float(str(value)), bound)
        except ValueError as error:
            remedy = "Mend the row, or compare as text with == or !=."
            raise ActError(Fault(f"{place}, {column}", value, "must be a number, for filter", remedy)) from error

    return holds
