"""The shapes a row may have, and the conversation that each one tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from act_lightning.data.reading import columns as naming
from act_lightning.data.reading.row_source import Row
from act_lightning.errors import ActError, Fault

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
        rule = "must be text" if column in row else "is missing"
        remedy = "Mend the row, or leave it out with filter."
        if isinstance(value, (bool, int, float)) and column in _KNOWN:
            remedy = f"Mend the row, or read the number as text with columns: {{{column}: '{{{column}}}'}}."
        raise ActError(Fault(f"{place}, {column}", value, rule, remedy))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        rule = f"must be text that UTF-8 can hold, and character {error.start + 1} is half of a surrogate pair"
        raise ActError(Fault(f"{place}, {column}", value, rule, "Mend the row.")) from error
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
        remedy = "Mend the row, or name another column with columns."
        raise ActError(Fault(f"{place}, {column}", turns, "must be a list of one or more objects", remedy))
    return [(f"{place}, {column}[{index}]", turn) for index, turn in enumerate(turns)]


def _messages(row: Row, place: str) -> Conversation:
    turns = _turns(row, "messages", place)
    return [_message(turn, at) for at, turn in turns]


def _message(turn: Mapping[str, Any], place: str) -> Message:
    for part in _UNTOLD:
        if turn.get(part):
            rule = "is a part of a message that is not read, and would be lost"
            remedy = "Write it into content as the target's chat template would, or leave the row out with filter."
            raise ActError(Fault(f"{place}, {part}", turn[part], rule, remedy))
    return {"role": _text(turn, "role", place), "content": _text(turn, "content", place)}


def _sharegpt(row: Row, place: str) -> Conversation:
    turns = _turns(row, "conversations", place)
    if "role" in turns[0][1]:
        rule = "must have from and value, as ShareGPT has them, but has role and content"
        remedy = "Write columns: {messages: conversations}."
        raise ActError(Fault(turns[0][0], turns[0][1], rule, remedy))
    return [{"role": _speaker(turn, at), "content": _text(turn, "value", at)} for at, turn in turns]


def _speaker(turn: Mapping[str, Any], place: str) -> str:
    name = _text(turn, "from", place)
    if name not in _SPEAKERS:
        raise ActError(Fault(f"{place}, from", name, f"must be one of {', '.join(_SPEAKERS)}", _NOT_A_SPEAKER))
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


def column_faults(columns: Mapping[str, str] | None, where: str) -> list[Fault]:
    """What is wrong with the setting ``columns``, as far as no row need be read.

    Args:
        columns: Our name of a column to the data set's name of it, or to a text made from columns.
        where: The place of the data set's settings in the config.
    """
    return naming.column_faults(columns, _KNOWN, _LISTS, where)


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
    renamed = naming.renamed(row, columns, place)
    shapes = _shapes_in(columns) or _shapes_in(renamed)
    if len(shapes) != 1:
        accepted = " | ".join("+".join(shape) for shape in _SHAPES)
        rule = f"must have one of the shapes {accepted}" + (f", but has {len(shapes)} of them" if shapes else "")
        remedy = "Say which columns to read with columns, such as {prompt: query, answer: response}."
        raise ActError(Fault(f"{place}, columns", list(row), rule, remedy))
    return _SHAPES[shapes[0]](renamed, place)


def _shapes_in(names: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [shape for shape in _SHAPES if all(name in names for name in shape)]
