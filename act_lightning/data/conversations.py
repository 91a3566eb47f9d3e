"""The conversations of a data set: its rows, selected by the settings, and read from any of the known shapes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.files import Row, RowSource
from act_lightning.data.loading import open_rows, select_rows, selection_issues, source_issues
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

Message = dict[str, str]
Conversation = list[Message]
"""Turns with ``role`` and ``content``."""

_SHAPES: tuple[tuple[str, ...], ...] = (
    ("prompt", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("messages",),
    ("instruction", "output"),
    ("conversations",),
)
_LIST_COLUMNS = ("messages", "conversations")
_COLUMNS = frozenset({"input"}.union(*_SHAPES))
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_UNREAD_KEYS = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Keys of a message besides its content that chat templates render."""
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
"""Doubled braces, a field, or a brace without its pair, in a text made from columns."""


def row_issues(settings: AbilityData, where: str) -> list[ConfigIssue]:
    """Issues of the settings of one data set, without reading data."""
    issues = source_issues(settings, where)
    setting, columns = f"{where}.columns", settings.columns or {}
    problem, hint = f"must be one of {', '.join(sorted(_COLUMNS))}", "Write {our name: the file's name}."
    issues += [ConfigIssue(setting, name, problem, hint) for name in columns if name not in _COLUMNS]
    names = [source for source in columns.values() if not _is_format(source)]
    if len(set(names)) < len(names):
        issues.append(ConfigIssue(setting, dict(columns), "must name each column once", "Drop one of the two."))
    for name, source in columns.items():
        if not _is_format(source):
            continue
        unpaired = [match[0] for match in _FIELD.finditer(source) if match[0] in ("{", "}")]
        if name in _LIST_COLUMNS:
            problem, hint = "must name a column that holds a list", "Leave out the braces."
            issues.append(ConfigIssue(f"{setting}.{name}", source, problem, hint))
        elif unpaired or not _source_columns(source):
            problem, hint = "must hold {column}, and no brace without its pair", "Write {{ and }} for literal braces."
            issues.append(ConfigIssue(f"{setting}.{name}", source, problem, hint))
    return issues + selection_issues(settings, where)


class LocatedConversation(NamedTuple):
    """A row's conversation with the row's location, such as ``data/science-ar.jsonl:3``, for messages."""

    location: str
    messages: Conversation


def iter_conversations(settings: AbilityData, where: str) -> Iterator[LocatedConversation]:
    """The conversations that the settings select, in their order, read as they are consumed.

    Raises:
        ActError: At once if the settings are wrong; while iterating if the data set cannot be read, has no rows, or the
            settings leave none; with file and row number if a row is broken, lacks a column, has no known shape, or
            holds something other than text.
    """
    raise_if_any(row_issues(settings, where))
    return _iter_conversations(settings, where)


def _iter_conversations(settings: AbilityData, where: str) -> Iterator[LocatedConversation]:
    source, is_empty = open_rows(settings, where), True
    for location, row in select_rows(source, settings, where):
        is_empty = False
        yield LocatedConversation(location, to_conversation(row, settings.columns or {}, location))
    if is_empty:
        raise _empty_error(source, settings, where)


def _empty_error(source: RowSource, settings: AbilityData, where: str) -> ActError:
    """The error that names the setting that left no row."""
    first = next(iter(source), None)
    if first is None:
        return ActError(ConfigIssue(f"{where}.path", settings.path, "holds no rows", "Name a data set that has some."))
    if settings.skip and any(True for _ in select_rows(source, replace(settings, skip=0, limit=1), where)):
        return ActError(ConfigIssue(f"{where}.skip", settings.skip, "leaves no row", "Skip fewer rows."))
    setting = "filter" if settings.filter else "per_group"
    text = json.dumps(first[1], ensure_ascii=False, default=str)
    hint = f"The first row, {first[0]}, is {text if len(text) <= 200 else text[:200] + '…'}."
    return ActError(ConfigIssue(f"{where}.{setting}", getattr(settings, setting), "leaves no row", hint))


def rows_fingerprint(settings: AbilityData, where: str) -> str | None:
    """SHA-256 over what determines the conversations of a data set: the contents of its source, and the settings.

    ``None`` if the source cannot say whether it has changed: cache nothing then.
    """
    raise_if_any(row_issues(settings, where))
    source = open_rows(settings, where).fingerprint()
    if source is None:
        return None
    relevant = ("columns", "filter", "shuffle_seed", "per_group", "skip", "limit")
    values = {name: value for name, value in asdict(settings).items() if name in relevant}
    return hashlib.sha256(json.dumps([source, values], sort_keys=True).encode()).hexdigest()


def to_conversation(row: Row, columns: Mapping[str, str], location: str) -> Conversation:
    """The messages of a row of any known shape.

    If the columns named in ``columns`` make a shape by themselves, it is used, whatever else the row holds.

    Args:
        row: One row as it was read.
        columns: Our name of a column to the data set's name of it, or to a text made from columns.
        location: The row's location, for messages.

    Raises:
        ActError: If a column is missing, the row has no known shape or more than one, or its content is not text.

    >>> columns = {"prompt": "{question} ({hint})", "answer": "sum"}
    >>> to_conversation({"question": "1 + 1?", "hint": "add", "sum": "2"}, columns, "sums.jsonl:1")
    [{'role': 'user', 'content': '1 + 1? (add)'}, {'role': 'assistant', 'content': '2'}]
    """
    renamed = _rename_columns(row, columns, location) if columns else row
    shapes = [shape for shape in _SHAPES if all(name in columns for name in shape)]
    shapes = shapes or [shape for shape in _SHAPES if all(name in renamed for name in shape)]
    if len(shapes) != 1:
        accepted = " | ".join("+".join(shape) for shape in _SHAPES)
        problem = f"must have one of the shapes {accepted}" + (f", but has {len(shapes)} of them" if shapes else "")
        hint = "Say which columns to read with columns, such as {prompt: query, answer: response}."
        raise ActError(ConfigIssue(f"{location}, columns", list(row), problem, hint))
    (shape,) = shapes
    if shape == ("messages",):
        return _from_messages(renamed, location)
    if shape == ("conversations",):
        return _from_sharegpt(renamed, location)
    prompt = _text(renamed, shape[0], location)
    if shape[0] == "instruction" and renamed.get("input"):
        prompt += "\n\n" + _text(renamed, "input", location)
    answer = _text(renamed, shape[1], location)
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _rename_columns(row: Row, columns: Mapping[str, str], location: str) -> Row:
    """A row under our names; columns that ``columns`` reads lose their own names."""
    used = {name for source in columns.values() for name in _source_columns(source)}
    missing = sorted(used.difference(row))
    if missing:
        hint = f"The row has {', '.join(row)}: correct columns or the row."
        raise ActError(ConfigIssue(f"{location}, columns", missing, "must all be there", hint))

    def fill(match: re.Match[str]) -> str:
        if not match[1]:
            return match[0][0]  # a literal brace
        value = row[match[1]]
        if isinstance(value, str):
            return value
        if isinstance(value, (bool, int, float)):
            return json.dumps(value)
        problem, hint = "must be text or a number to be part of a text", "Correct the row, or exclude it with filter."
        raise ActError(ConfigIssue(f"{location}, {match[1]}", value, problem, hint))

    renamed = {name: value for name, value in row.items() if name not in used}
    for name, source in columns.items():
        renamed[name] = _FIELD.sub(fill, source) if _is_format(source) else row[source]
    return renamed


def _is_format(source: str) -> bool:
    """Whether a value of ``columns`` is a text made from columns, not the name of one."""
    return "{" in source or "}" in source


def _source_columns(source: str) -> list[str]:
    """The data set's columns that a value of ``columns`` reads."""
    return [match[1] for match in _FIELD.finditer(source) if match[1]] if _is_format(source) else [source]


def _from_messages(row: Row, location: str) -> Conversation:
    messages = []
    for turn_location, turn in _turns(row, "messages", location):
        for key in _UNREAD_KEYS:
            if turn.get(key):
                problem = "is a part of a message that is not read, and would be lost"
                hint = "Write it into content as the target's chat template would, or exclude the row with filter."
                raise ActError(ConfigIssue(f"{turn_location}, {key}", turn[key], problem, hint))
        messages.append({name: _text(turn, name, turn_location) for name in ("role", "content")})
    return messages


def _from_sharegpt(row: Row, location: str) -> Conversation:
    messages: Conversation = []
    for turn_location, turn in _turns(row, "conversations", location):
        if not messages and "role" in turn:
            problem = "must have from and value, as ShareGPT has them, but has role and content"
            raise ActError(ConfigIssue(turn_location, turn, problem, "Write columns: {messages: conversations}."))
        role = _text(turn, "from", turn_location)
        if role not in _SHAREGPT_ROLES:
            problem = f"must be one of {', '.join(_SHAREGPT_ROLES)}"
            hint = "Correct the row, or leave it out: function calls and their results are not read."
            raise ActError(ConfigIssue(f"{turn_location}, from", role, problem, hint))
        messages.append({"role": _SHAREGPT_ROLES[role], "content": _text(turn, "value", turn_location)})
    return messages


def _turns(row: Row, column: str, location: str) -> list[tuple[str, Mapping[str, Any]]]:
    turns = row[column]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        hint = "Correct the row, or name another column with columns."
        raise ActError(ConfigIssue(f"{location}, {column}", turns, "must be a list of one or more objects", hint))
    return [(f"{location}, {column}[{index}]", turn) for index, turn in enumerate(turns)]


def _text(row: Mapping[str, Any], column: str, location: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        problem = "must be text" if column in row else "is missing"
        hint = "Correct the row, or exclude it with filter."
        if isinstance(value, (bool, int, float)) and column in _COLUMNS:
            hint = f"Correct the row, or read the number as text with columns: {{{column}: '{{{column}}}'}}."
        raise ActError(ConfigIssue(f"{location}, {column}", value, problem, hint))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"must be text that UTF-8 can encode, and character {error.start + 1} is half of a surrogate pair"
        raise ActError(ConfigIssue(f"{location}, {column}", value, problem, "Correct the row.")) from error
    return value
