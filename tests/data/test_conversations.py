"""Rows of every shape and source as conversations, and a message for everything that can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import Conversation, iter_conversations
from act_lightning.errors import ActError
from tests.tiny import write_jsonl

SAID = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "one"}]
NUMBERS = [{"prompt": str(i), "answer": f"a{i}", "kind": "odd" if i % 2 else "even", "big": i > 5} for i in range(9)]


def read(path: Path | str, **settings: Any) -> list[Conversation]:
    conversations = iter_conversations(AbilityData(str(path), **settings), "data.abilities.x")
    return [messages for _, messages in conversations]


def prompts(conversations: list[Conversation]) -> list[str]:
    return [conversation[0]["content"] for conversation in conversations]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1?", "answer": "one", "note": 3},
        {"prompt": "1?", "completion": "one"},
        {"prompt": "1?", "response": "one"},
        {"messages": SAID},
        {"instruction": "1?", "input": "", "output": "one"},
        {"instruction": "1?", "input": None, "output": "one"},
        {"conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "one"}]},
    ],
    ids=lambda row: "+".join(row),
)
def test_shapes(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(write_jsonl(tmp_path / "x.jsonl", [row])) == [SAID]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == [SAID]


def test_alpaca_input_follows_the_instruction(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    assert prompts(read(write_jsonl(tmp_path / "x.jsonl", [row]))) == ["Add.\n\n1, 2"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"query": "1?", "response": "one"}, {"prompt": "query"}),
        ({"query": "1?", "prompt": "?", "answer": "1", "response": "one"}, {"prompt": "query", "answer": "response"}),
        ({"prompt": "1?", "answer": "1", "response": "one"}, {"prompt": "prompt", "answer": "response"}),
        ({"prompt": "?", "answer": "1", "talk": SAID}, {"messages": "talk"}),
        ({"input": "1?", "output": "one", "instruction": "?"}, {"prompt": "input", "answer": "output"}),
    ],
)
def test_columns_decide(tmp_path: Path, row: dict[str, Any], columns: dict[str, str]) -> None:
    assert read(write_jsonl(tmp_path / "x.jsonl", [row]), columns=columns) == [SAID]


@pytest.mark.parametrize(
    ("columns", "prompt"),
    [
        ({"prompt": "{q} ({hint}), level {level}", "answer": "a"}, "1 + 1? (add), level 2"),
        ({"prompt": "\\boxed{{{q}}} {{}}", "answer": "a"}, "\\boxed{1 + 1?} {}"),
        ({"prompt": "{Incorrect Answer 1}{easy}", "answer": "{a}"}, "3true"),
    ],
)
def test_columns_made_of_several(tmp_path: Path, columns: dict[str, str], prompt: str) -> None:
    row = {"q": "1 + 1?", "hint": "add", "level": 2, "easy": True, "Incorrect Answer 1": "3", "a": "2", "none": None}
    file = write_jsonl(tmp_path / "x.jsonl", [row])
    assert read(file, columns=columns) == [[{"role": "user", "content": prompt}, {"role": "assistant", "content": "2"}]]
    with pytest.raises(ActError, match=r"x.jsonl:1, none = None: must be text or a number to be part of a text"):
        read(file, columns={**columns, "prompt": "{q}{none}"})


def test_byte_order_mark_blank_lines_and_line_separators(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "1?", "answer": "a\xe2\x80\xa8b"}\r\n\n')
    assert read(file)[0][1]["content"] == "a\u2028b"


def test_parts_of_a_message_that_are_empty_are_no_parts(tmp_path: Path) -> None:
    turns = [turn | {"tool_calls": None, "thinking": ""} for turn in SAID]
    assert read(write_jsonl(tmp_path / "x.jsonl", [{"messages": turns}])) == [SAID]


def test_a_file_of_nothing_but_a_byte_order_mark_holds_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf\r\n")
    with pytest.raises(ActError, match="holds no rows"):
        read(tmp_path / "x.jsonl")


GOOD = json.dumps(NUMBERS[0])


@pytest.mark.parametrize(
    ("second", "setting", "message"),
    [
        ('{"prompt": "x', "x.jsonl:3", "is not JSON in UTF-8"),
        (b"\xff", "x.jsonl:3", "is not JSON in UTF-8"),
        ("[1]", "x.jsonl:3", "must be an object"),
        ('{"prompt": "x"}', "x.jsonl:3, columns", "must have one of the shapes prompt+answer | "),
        ('{"prompt": "x", "answer": "y", "response": "z"}', "x.jsonl:3, columns", "but has 2 of them"),
        ('{"prompt": "x", "answer": 3}', "x.jsonl:3, answer", "must be text"),
        ('{"messages": []}', "x.jsonl:3, messages", "must be a list of one or more objects"),
        ('{"messages": [{"role": "user"}]}', "x.jsonl:3, messages[0], content", "is missing"),
        ('{"messages": [{"role": "user", "content": []}]}', "x.jsonl:3, messages[0], content", "must be text"),
        ("[" * 99_999, "x.jsonl:3", "is not JSON in UTF-8: maximum recursion depth"),
        ('{"prompt": "x", "answer": "1"', "x.jsonl:3", "Expecting ',' delimiter at character 31"),
        (
            '{"prompt": "x", "answer": 3}',
            "x.jsonl:3, answer",
            "read the number as text with columns: {answer: '{answer}'}",
        ),
        ('{"prompt": "x", "answer": "\\ud83d"}', "x.jsonl:3, answer", "character 1 is half of a surrogate pair"),
        (
            '{"messages": [{"role": "assistant", "content": "Wait.", "tool_calls": [{"name": "add"}]}]}',
            "x.jsonl:3, messages[0], tool_calls",
            "would be lost",
        ),
        (
            '{"conversations": [{"role": "user", "content": "x"}]}',
            "x.jsonl:3, conversations[0]",
            "Write columns: {messages: conversations}",
        ),
        (
            '{"conversations": [{"from": "x", "value": ""}]}',
            "conversations[0], from",
            "must be one of human, user, gpt",
        ),
    ],
)
def test_broken_rows(tmp_path: Path, second: str | bytes, setting: str, message: str) -> None:
    line = second.encode() if isinstance(second, str) else second
    (tmp_path / "x.jsonl").write_bytes(GOOD.encode() + b"\n\n" + line + b"\n")
    with pytest.raises(ActError) as caught:
        read(tmp_path / "x.jsonl")
    assert caught.value.issues[0].setting.endswith(setting)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "setting", "message"),
    [
        ({"path": "missing.jsonl"}, "path", "must be an existing file"),
        ({"path": "some/data/x.txt"}, "path", "must name a data set of a known kind"),
        ({"path": "."}, "path", "must name a data set of a known kind"),
        ({"path": "nobody/nothing"}, "path", "cannot be loaded"),
        ({"split": "train"}, "split", "has no meaning for"),
        ({"columns": {"question": "prompt"}}, "columns", "must be one of answer, completion, conversations"),
        ({"columns": {"prompt": "big", "answer": "big"}}, "columns", "must name each column once"),
        ({"columns": {"prompt": "query"}}, "x.jsonl:1, columns", "The row has prompt, answer, kind, big"),
        ({"columns": {"prompt": "{query} {big}"}}, "x.jsonl:1, columns", "['query']: must all be there"),
        ({"columns": {"prompt": "{} x"}}, "columns.prompt", "must hold {column}, and no brace without its pair"),
        ({"columns": {"prompt": "{prompt} }"}}, "columns.prompt", "no brace without its pair"),
        ({"columns": {"messages": "{prompt}"}}, "columns.messages", "must name a column that holds a list"),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: dict[str, Any], setting: str, message: str) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", NUMBERS)
    with pytest.raises(ActError) as caught:
        read(**({"path": file} | settings))
    assert caught.value.issues[0].setting.endswith(setting)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_empty_and_unreadable_files(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    pyarrow.parquet.write_table(pyarrow.table({"prompt": []}), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text("\n \n")
    with pytest.raises(ActError, match="holds no rows"):
        read(file)
    file.write_bytes(b"PAR1 of which nothing follows")
    with pytest.raises(ActError, match=r"cannot be read|is not JSON"):
        read(file)


def test_laboratory() -> None:
    lab = read("lab:words-de", split="test", limit=2)
    assert [[message["role"] for message in conversation] for conversation in lab] == [["user", "assistant"]] * 2
    assert lab != read("lab:words-de", limit=2) != read("lab:words-de", split="validation", limit=2)
    with pytest.raises(ActError, match="x-y"):
        read("lab:x-y")
