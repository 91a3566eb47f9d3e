"""The conversations of a data set: the rows that are used, each in the shape that messages have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import NamedTuple

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import Conversation, column_issues, to_conversation
from act_lightning.data.files import Row, RowSource
from act_lightning.data.loading import open_rows, source_issues
from act_lightning.data.row_selection import select, selection_issues
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

_CHOOSING = ("columns", "filter", "shuffle_seed", "per_group", "skip", "limit")
"""Settings that decide, besides the source, which conversations there are."""


def row_issues(settings: AbilityData, where: str) -> list[ConfigIssue]:
    """What is wrong with the settings of one data set, as far as no data need be read.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, such as ``data.abilities.math-en``.
    """
    return source_issues(settings, where) + column_issues(settings.columns, where) + selection_issues(settings, where)


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
    """The conversations of a data set, as its settings choose and order them, read while they are used.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, such as ``data.abilities.math-en``, for messages.

    Raises:
        ActError: At once if the settings are wrong; while iterating if the data set cannot be read, has no rows, or the
            settings leave none; with file and row number if a row is broken, lacks a column, has no known shape, or
            holds what is not text.
    """
    raise_if_any(row_issues(settings, where))
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
    raise_if_any(row_issues(settings, where))
    source = open_rows(settings, where).fingerprint()
    if source is None:
        return None
    chosen = {name: value for name, value in asdict(settings).items() if name in _CHOOSING}
    return hashlib.sha256(json.dumps([source, chosen], sort_keys=True).encode()).hexdigest()


def _conversations(settings: AbilityData, where: str) -> Iterator[LocatedConversation]:
    source = open_rows(settings, where)
    columns, used = settings.columns or {}, False
    for place, row in select(source, settings, where):
        used = True
        yield LocatedConversation(place, to_conversation(row, columns, place))
    if not used:
        raise _nothing_left(source, settings, where)


def _nothing_left(source: RowSource, settings: AbilityData, where: str) -> ActError:
    first = next(iter(source), None)
    if first is None:
        return ActError(ConfigIssue(f"{where}.path", settings.path, "holds no rows", "Name a data set that has some."))
    hint = f"The first row, {first[0]}, is {_shown(first[1])}."
    if settings.skip and any(True for _ in select(source, replace(settings, skip=0, limit=1), where)):
        return ActError(ConfigIssue(f"{where}.skip", settings.skip, "leaves no row", "Skip fewer rows."))
    blamed = "filter" if settings.filter else "per_group"
    return ActError(ConfigIssue(f"{where}.{blamed}", getattr(settings, blamed), "leaves no row", hint))


def _shown(row: Row, longest: int = 200) -> str:
    text = json.dumps(row, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[:longest] + "…"
