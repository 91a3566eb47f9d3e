"""Which rows of a data set are used: filter, shuffle, a quota per group, skip and limit.

``datasets`` could filter and shuffle, but would draw another order, copy local files first, and not say which row lacks
a column.
"""

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
from act_lightning.data.files import LocatedRow, Row, RowSource
from act_lightning.errors import ActError, ConfigIssue

Condition = Callable[[Row, str], bool]
"""Whether a row passes, given the row and its location."""
Item = TypeVar("Item")

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_EQUALITY = re.compile(r"\s*(?P<column>.+?)\s*(?P<sign>==|!=)\s*(?P<value>.*?)\s*", re.DOTALL)
_MEMBERSHIP = re.compile(r"\s*(?P<column>.+?)\s+(?P<sign>not\s+in|in)\s*\[(?P<value>.*)\]\s*", re.DOTALL)
_INEQUALITY = re.compile(
    r"\s*(?P<column>.+?)\s*(?P<sign><=|>=|<|>)\s*(?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*"
)


def selection_issues(settings: AbilityData, where: str) -> list[ConfigIssue]:
    """Issues of the settings that select rows."""
    problem = "must read column == value or column != value, column in [a, b] or not in, or column >= number or < <= >"
    hint = "Write, for example, subject == physics, without quotes."
    conditions = _as_list(settings.filter)
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


def _as_list(filters: str | Sequence[str] | None) -> list[str]:
    return [filters] if isinstance(filters, str) else list(filters or ())


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
                return compare(float(str(value)), bound)
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
    conditions = [condition for text in _as_list(settings.filter) if (condition := parse_condition(text))]

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
