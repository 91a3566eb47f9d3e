"""The columns and shapes that a row may have, and the conversation that each one gives."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.loading import Row, RowSource, open_rows, source_issues
from act_lightning.data.row_selection import select_rows, selection_issues
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


def renaming_issues(
    columns: Mapping[str, str] | None, known: Collection[str], lists: Collection[str], where: str
) -> list[ConfigIssue]:
    """Names that no shape of rows has, columns named twice, and texts that cannot be made.

    Args:
        columns: Our name of a column to the data set's name of it, or to a text made from columns.
        known: Our names of columns.
        lists: Those of them that hold lists of turns, not text.
        where: The place of the data set's settings in the config.
    """
    setting, columns = f"{where}.columns", columns or {}
    problem, hint = f"must be one of {', '.join(sorted(known))}", "Write {our name: the file's name}."
    issues = [ConfigIssue(setting, name, problem, hint) for name in columns if name not in known]
    plain = [theirs for theirs in columns.values() if not _is_text(theirs)]
    if len(set(plain)) < len(plain):
        issues.append(ConfigIssue(setting, dict(columns), "must name each column once", "Drop one of the two."))
    return issues + [issue for ours, theirs in columns.items() for issue in _text_issues(ours, theirs, lists, setting)]


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
        hint = f"The row has {', '.join(row)}: mend columns or the row."
        raise ActError(ConfigIssue(f"{place}, columns", missing, "must all be there", hint))
    rest = {name: value for name, value in row.items() if name not in read}
    return rest | {ours: _filled(row, theirs, place) for ours, theirs in columns.items()}


def _is_text(theirs: str) -> bool:
    return "{" in theirs or "}" in theirs


def _names(theirs: str) -> list[str]:
    if not _is_text(theirs):
        return [theirs]
    return [part[1] for part in _PART.finditer(theirs) if part[1]]


def _text_issues(ours: str, theirs: str, lists: Collection[str], setting: str) -> list[ConfigIssue]:
    if not _is_text(theirs):
        return []
    if ours in lists:
        return [
            ConfigIssue(f"{setting}.{ours}", theirs, "must name a column that holds a list", "Leave out the braces.")
        ]
    loose = [part[0] for part in _PART.finditer(theirs) if part[0] in ("{", "}")]
    if _names(theirs) and not loose:
        return []
    problem = "must hold {column}, and no brace without its pair"
    return [ConfigIssue(f"{setting}.{ours}", theirs, problem, "Write {{ and }} for braces that belong to the text.")]


def _filled(row: Row, theirs: str, place: str) -> object:
    if not _is_text(theirs):
        return row[theirs]
    return _PART.sub(lambda part: _word(row[part[1]], part[1], place) if part[1] else part[0][0], theirs)


def _word(value: object, column: str, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    hint = "Mend the row, or leave it out with filter."
    raise ActError(ConfigIssue(f"{place}, {column}", value, "must be text or a number to be part of a text", hint))


Message = dict[str, str]
Conversation = list[Message]

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

_NOT_A_SPEAKER = "Mend the row, or leave it out: calls of functions and their results are not read."
_UNTOLD = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""What templates write of a message besides its content."""


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        problem = "must be text" if column in row else "is missing"
        hint = "Mend the row, or leave it out with filter."
        if isinstance(value, (bool, int, float)) and column in _KNOWN:
            hint = f"Mend the row, or read the number as text with columns: {{{column}: '{{{column}}}'}}."
        raise ActError(ConfigIssue(f"{place}, {column}", value, problem, hint))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"must be text that UTF-8 can hold, and character {error.start + 1} is half of a surrogate pair"
        raise ActError(ConfigIssue(f"{place}, {column}", value, problem, "Mend the row.")) from error
    return value


def _exchange(prompt: str, answer: str) -> Conversation:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _pair(answer: str) -> Callable[[Row, str], Conversation]:
    def convert(row: Row, place: str) -> Conversation:
        return _exchange(_text(row, "prompt", place), _text(row, answer, place))

    return convert


def _alpaca(row: Row, place: str) -> Conversation:
    prompt = _text(row, "instruction", place)
    if row.get("input"):
        prompt += "\n\n" + _text(row, "input", place)
    return _exchange(prompt, _text(row, "output", place))


def _turns(row: Row, column: str, place: str) -> list[tuple[str, Mapping[str, Any]]]:
    turns = row[column]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        hint = "Mend the row, or name another column with columns."
        raise ActError(ConfigIssue(f"{place}, {column}", turns, "must be a list of one or more objects", hint))
    return [(f"{place}, {column}[{index}]", turn) for index, turn in enumerate(turns)]


def _messages(row: Row, place: str) -> Conversation:
    turns = _turns(row, "messages", place)
    return [_message(turn, at) for at, turn in turns]


def _message(turn: Mapping[str, Any], place: str) -> Message:
    for part in _UNTOLD:
        if turn.get(part):
            problem = "is a part of a message that is not read, and would be lost"
            hint = "Write it into content as the target's chat template would, or leave the row out with filter."
            raise ActError(ConfigIssue(f"{place}, {part}", turn[part], problem, hint))
    return {"role": _text(turn, "role", place), "content": _text(turn, "content", place)}


def _sharegpt(row: Row, place: str) -> Conversation:
    turns = _turns(row, "conversations", place)
    if "role" in turns[0][1]:
        problem = "must have from and value, as ShareGPT has them, but has role and content"
        hint = "Write columns: {messages: conversations}."
        raise ActError(ConfigIssue(turns[0][0], turns[0][1], problem, hint))
    return [{"role": _speaker(turn, at), "content": _text(turn, "value", at)} for at, turn in turns]


def _speaker(turn: Mapping[str, Any], place: str) -> str:
    name = _text(turn, "from", place)
    if name not in _SPEAKERS:
        raise ActError(ConfigIssue(f"{place}, from", name, f"must be one of {', '.join(_SPEAKERS)}", _NOT_A_SPEAKER))
    return _SPEAKERS[name]


_SHAPES: dict[tuple[str, ...], Callable[[Row, str], Conversation]] = {
    ("prompt", "answer"): _pair("answer"),
    ("prompt", "completion"): _pair("completion"),
    ("prompt", "response"): _pair("response"),
    ("messages",): _messages,
    ("instruction", "output"): _alpaca,
    ("conversations",): _sharegpt,
}
_LISTS = ("messages", "conversations")
_KNOWN = frozenset({"input"}.union(*_SHAPES))


def column_issues(columns: Mapping[str, str] | None, where: str) -> list[ConfigIssue]:
    """What is wrong with the setting ``columns``, as far as no row need be read.

    Args:
        columns: Our name of a column to the data set's name of it, or to a text made from columns.
        where: The place of the data set's settings in the config.
    """
    return renaming_issues(columns, _KNOWN, _LISTS, where)


def to_conversation(row: Row, columns: Mapping[str, str], place: str) -> Conversation:
    """The messages that a row of any known shape tells.

    Columns named in ``columns`` go first: if they alone make a shape, it is this one, whatever else the row holds.

    Args:
        row: One row as it was read.
        columns: Our name of a column to the data set's name of it, or to a text made from columns.
        place: Where the row stands, for messages.

    Raises:
        ActError: If a column is missing, the row has no known shape or more than one, or its content is not text.

    >>> to_conversation({"query": "1 + 1?", "answer": "2"}, {"prompt": "query"}, "sums.jsonl:1")
    [{'role': 'user', 'content': '1 + 1?'}, {'role': 'assistant', 'content': '2'}]
    """
    renamed_row = renamed(row, columns, place)
    shapes = _shapes_in(columns) or _shapes_in(renamed_row)
    if len(shapes) != 1:
        accepted = " | ".join("+".join(shape) for shape in _SHAPES)
        problem = f"must have one of the shapes {accepted}" + (f", but has {len(shapes)} of them" if shapes else "")
        hint = "Say which columns to read with columns, such as {prompt: query, answer: response}."
        raise ActError(ConfigIssue(f"{place}, columns", list(row), problem, hint))
    return _SHAPES[shapes[0]](renamed_row, place)


def _shapes_in(names: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [shape for shape in _SHAPES if all(name in names for name in shape)]


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
    for place, row in select_rows(source, settings, where):
        used = True
        yield LocatedConversation(place, to_conversation(row, columns, place))
    if not used:
        raise _nothing_left(source, settings, where)


def _nothing_left(source: RowSource, settings: AbilityData, where: str) -> ActError:
    first = next(iter(source), None)
    if first is None:
        return ActError(ConfigIssue(f"{where}.path", settings.path, "holds no rows", "Name a data set that has some."))
    hint = f"The first row, {first[0]}, is {_shown(first[1])}."
    if settings.skip and any(True for _ in select_rows(source, replace(settings, skip=0, limit=1), where)):
        return ActError(ConfigIssue(f"{where}.skip", settings.skip, "leaves no row", "Skip fewer rows."))
    blamed = "filter" if settings.filter else "per_group"
    return ActError(ConfigIssue(f"{where}.{blamed}", getattr(settings, blamed), "leaves no row", hint))


def _shown(row: Row, longest: int = 200) -> str:
    text = json.dumps(row, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[:longest] + "…"
