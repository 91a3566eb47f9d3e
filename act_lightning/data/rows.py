"""Which rows of a data set are used: filter, then shuffle, then limit; each as a conversation."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from typing import NamedTuple

from act_lightning.data.settings import AbilityData
from act_lightning.data.shapes import Conversation, column_faults, to_conversation
from act_lightning.data.sources import LocatedRow, Row, open_rows, source_faults, source_fingerprint
from act_lightning.errors import ActError, Fault, refuse

_CHOOSING = ("columns", "filter", "shuffle_seed", "limit")
"""Settings that decide, besides the source, which conversations there are."""
_CONDITION = re.compile(r"\s*(?P<column>.+?)\s*(?P<sign>==|!=)\s*(?P<value>.*?)\s*", re.DOTALL)


def row_faults(settings: AbilityData, where: str) -> list[Fault]:
    """What is wrong with the settings of one data set, as far as no data need be read.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, such as ``data.abilities.math-en``.
    """
    faults = source_faults(settings, where) + column_faults(settings.columns, where)
    if settings.filter is not None and not _CONDITION.fullmatch(settings.filter):
        remedy = "Write, for example, subject == physics, without quotes."
        faults.append(Fault(f"{where}.filter", settings.filter, "must read column == value or column != value", remedy))
    if settings.limit is not None and settings.limit < 1:
        faults.append(Fault(f"{where}.limit", settings.limit, "must be at least 1", "Write null for every row."))
    return faults


class LocatedConversation(NamedTuple):
    """A row's conversation, and where the row stands.

    Attributes:
        place: Such as ``data/science-ar.jsonl:3``, for messages.
        messages: Turns with ``role`` and ``content``.
    """

    place: str
    messages: Conversation


def read_rows(settings: AbilityData, where: str) -> list[Conversation]:
    """The conversations of :func:`iter_conversations`, all at once and without their places."""
    return [messages for _, messages in iter_conversations(settings, where)]


def iter_conversations(settings: AbilityData, where: str) -> Iterator[LocatedConversation]:
    """The conversations of a data set after ``filter``, shuffle and ``limit``, in this order, read while they are used.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, such as ``data.abilities.math-en``, for messages.

    Raises:
        ActError: At once if the settings are wrong; while iterating if the data set cannot be read, has no rows, or the
            filter leaves none; with file and row number if a row is broken, lacks a column, has no known shape, or
            holds what is not text.
    """
    refuse(row_faults(settings, where))
    return _conversations(settings, where)


def rows_fingerprint(settings: AbilityData, where: str) -> str | None:
    """SHA-256 over what decides which conversations a data set gives: what its source holds, and the settings.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, for messages.

    Returns:
        64 hexadecimal digits, or ``None`` if the source cannot say whether it has changed: cache nothing then.

    Raises:
        ActError: If the settings are wrong, or the source cannot be read.
    """
    refuse(row_faults(settings, where))
    source = source_fingerprint(settings, where)
    if source is None:
        return None
    chosen = {name: value for name, value in asdict(settings).items() if name in _CHOOSING}
    return hashlib.sha256(json.dumps([source, chosen], sort_keys=True).encode()).hexdigest()


def _conversations(settings: AbilityData, where: str) -> Iterator[LocatedConversation]:
    rows = open_rows(settings, where)
    first = next(rows, None)
    if first is None:
        raise ActError(Fault(f"{where}.path", settings.path, "holds no rows", "Name a data set that has some."))
    columns, used = settings.columns or {}, 0
    for place, row in _selected(chain([first], rows), settings):
        used += 1
        yield LocatedConversation(place, to_conversation(row, columns, place))
    if not used:
        remedy = f"The first row, {first[0]}, is {_shown(first[1])}."
        raise ActError(Fault(f"{where}.filter", settings.filter, "leaves no row", remedy))


def _selected(rows: Iterator[LocatedRow], settings: AbilityData) -> Iterable[LocatedRow]:
    kept: Iterable[LocatedRow] = _filtered(rows, settings.filter)
    if settings.shuffle_seed is not None:
        kept = list(kept)
        random.Random(settings.shuffle_seed).shuffle(kept)
    return islice(kept, settings.limit)


def _filtered(rows: Iterator[LocatedRow], condition: str | None) -> Iterator[LocatedRow]:
    match = _CONDITION.fullmatch(condition) if condition else None
    if match is None:
        return rows
    column, value, wanted = match["column"], match["value"], match["sign"] == "=="
    return ((place, row) for place, row in rows if (_cell(row, column, place) == value) is wanted)


def _cell(row: Row, column: str, place: str) -> str:
    if column not in row:
        remedy = f"The row has {', '.join(row)}: mend filter or the row."
        raise ActError(Fault(f"{place}, filter", column, "must be a column of every row", remedy))
    value = row[column]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _shown(row: Row, longest: int = 200) -> str:
    text = json.dumps(row, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[:longest] + "…"
