"""Which rows of a data set are used: filter, shuffle, so many per group, skip and limit."""

from __future__ import annotations

import json
import operator
import random
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from act_lightning.data.ability_data import AbilityData, PerGroup
from act_lightning.data.loading import LocatedRow, Row, RowSource
from act_lightning.errors import ActError, ConfigIssue

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


def filter_issues(filters: str | Sequence[str] | None, setting: str) -> list[ConfigIssue]:
    """Conditions that cannot be read.

    Args:
        filters: The setting ``filter``.
        setting: Its place in the config.
    """
    problem = "must read column == value or column != value, column in [a, b] or not in, or column >= number or < <= >"
    hint = "Write, for example, subject == physics, without quotes."
    return [ConfigIssue(setting, text, problem, hint) for text in listed(filters) if _parsed(text) is None]


def condition(filters: str | Sequence[str] | None) -> Condition:
    """One condition for all that the setting ``filter`` says; without any, every row is kept.

    Args:
        filters: The setting ``filter``, without issues.

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
        hint = f"The row has {', '.join(row)}: mend {setting} or the row."
        raise ActError(ConfigIssue(f"{place}, {setting}", column, "must be a column of every row", hint))
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
            hint = "Mend the row, or compare as text with == or !=."
            raise ActError(ConfigIssue(f"{place}, {column}", value, "must be a number, for filter", hint)) from error

    return holds


Item = TypeVar("Item")


def selection_issues(settings: AbilityData, where: str) -> list[ConfigIssue]:
    """What is wrong with the settings that choose rows.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, such as ``data.abilities.math-en``.
    """
    issues = filter_issues(settings.filter, f"{where}.filter")
    issues += _bounds_issues(settings.limit, settings.skip, where)
    groups = settings.per_group
    if groups is not None:
        issues += _bounds_issues(groups.limit, groups.skip, f"{where}.per_group")
        if groups.groups is not None and not 0 < len(set(groups.groups)) == len(groups.groups):
            hint = "Write null for every group there is."
            issues.append(ConfigIssue(f"{where}.per_group.groups", groups.groups, "must name groups, each once", hint))
    if settings.streaming and settings.shuffle_seed is not None and settings.limit is None and groups is None:
        hint = "Add limit or per_group, or leave out streaming."
        problem = "must keep the rows that a shuffle chooses in memory, and no limit bounds them"
        issues.append(ConfigIssue(f"{where}.streaming", True, problem, hint))
    return issues


def _bounds_issues(limit: int | None, skip: int, where: str) -> list[ConfigIssue]:
    issues = []
    if limit is not None and limit < 1:
        issues.append(ConfigIssue(f"{where}.limit", limit, "must be at least 1", "Write null for every row."))
    if skip < 0:
        issues.append(ConfigIssue(f"{where}.skip", skip, "must be at least 0", "Write 0 to skip none."))
    return issues


def select_rows(source: RowSource, settings: AbilityData, where: str) -> Iterator[LocatedRow]:
    """The rows that are used, in the order of their use, read while they are used.

    Without a shuffle the source is read once, and no further than needed. With a shuffle it is read twice: first to see
    which rows the filter keeps, of which only the numbers are held, then for the rows.

    Args:
        source: All rows.
        settings: The settings of one data set.
        where: Its place in the config, for messages.

    Raises:
        ActError: If a row lacks a column that ``filter`` or ``per_group`` names, or a group has too few rows.
    """
    keeps, group_of = condition(settings.filter), _grouping(settings.per_group)
    if settings.shuffle_seed is None:
        kept = (located for located in source if keeps(located[1], located[0]))
        return _taken(kept, group_of, settings, where)
    numbers, groups = array("q"), list[str]()
    for number, located in enumerate(source):
        if keeps(located[1], located[0]):
            numbers.append(number)
            groups.append(sys.intern(group_of(located)))
    order = array("q", range(len(numbers)))
    random.Random(settings.shuffle_seed).shuffle(order)
    chosen = _taken(order, groups.__getitem__, settings, where)
    return source.at(array("q", (numbers[position] for position in chosen)))


def _grouping(per_group: PerGroup | None) -> Callable[[LocatedRow], str]:
    if per_group is None:
        return lambda located: ""
    column = per_group.column
    return lambda located: cell(located[1], column, located[0], "per_group.column")


def _taken(items: Iterable[Item], group_of: Callable[[Item], str], settings: AbilityData, where: str) -> Iterator[Item]:
    if settings.per_group is not None:
        items = _first_of_each(items, group_of, settings.per_group, f"{where}.per_group")
    end = None if settings.limit is None else settings.skip + settings.limit
    return islice(items, settings.skip, end)


def _first_of_each(
    items: Iterable[Item], group_of: Callable[[Item], str], per_group: PerGroup, setting: str
) -> Iterator[Item]:
    seen, end = Counter[str](), per_group.skip + per_group.limit
    missing = set(per_group.groups or ())
    for item in items:
        group = group_of(item)
        seen[group] += 1
        if (per_group.groups is None or group in per_group.groups) and per_group.skip < seen[group] <= end:
            yield item
        if seen[group] == end:
            missing.discard(group)
            if per_group.groups is not None and not missing:
                return
    if missing:
        raise _too_few(sorted(missing), seen, end, setting)


def _too_few(missing: list[str], seen: Counter[str], end: int, setting: str) -> ActError:
    counts = ", ".join(f"{seen[group]} of {group}" for group in missing)
    hint = f"The groups are {', '.join(f'{name} ({count})' for name, count in seen.most_common(20))}."
    problem = f"must have {end} rows each, skipped ones included, but after filter there are {counts}"
    return ActError(ConfigIssue(f"{setting}.groups", missing, problem, hint))
