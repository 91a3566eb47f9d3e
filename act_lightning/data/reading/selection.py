"""Which rows of a source are used: filter, then shuffle, then so many per group, then skip and limit."""

from __future__ import annotations

import random
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from act_lightning.data.reading.filters import cell, condition, filter_faults
from act_lightning.data.reading.row_source import LocatedRow, RowSource
from act_lightning.data.settings import AbilityData, PerGroup
from act_lightning.errors import ActError, Fault

Item = TypeVar("Item")


def selection_faults(settings: AbilityData, where: str) -> list[Fault]:
    """What is wrong with the settings that choose rows.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, such as ``data.abilities.math-en``.
    """
    faults = filter_faults(settings.filter, f"{where}.filter")
    faults += _bounds_faults(settings.limit, settings.skip, where)
    groups = settings.per_group
    if groups is not None:
        faults += _bounds_faults(groups.limit, groups.skip, f"{where}.per_group")
        if groups.groups is not None and not 0 < len(set(groups.groups)) == len(groups.groups):
            remedy = "Write null for every group there is."
            faults.append(Fault(f"{where}.per_group.groups", groups.groups, "must name groups, each once", remedy))
    if settings.streaming and settings.shuffle_seed is not None and settings.limit is None and groups is None:
        remedy = "Add limit or per_group, or leave out streaming."
        rule = "must keep the rows that a shuffle chooses in memory, and no limit bounds them"
        faults.append(Fault(f"{where}.streaming", True, rule, remedy))
    return faults


def _bounds_faults(limit: int | None, skip: int, where: str) -> list[Fault]:
    faults = []
    if limit is not None and limit < 1:
        faults.append(Fault(f"{where}.limit", limit, "must be at least 1", "Write null for every row."))
    if skip < 0:
        faults.append(Fault(f"{where}.skip", skip, "must be at least 0", "Write 0 to skip none."))
    return faults


def select(source: RowSource, settings: AbilityData, where: str) -> Iterator[LocatedRow]:
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
    remedy = f"The groups are {', '.join(f'{name} ({count})' for name, count in seen.most_common(20))}."
    rule = f"must have {end} rows each, skipped ones included, but after filter there are {counts}"
    return ActError(Fault(f"{setting}.groups", missing, rule, remedy))
