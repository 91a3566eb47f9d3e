"""Every kind of source gives the same rows, in bounded memory, and says where a broken one stands."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from act_lightning.data import files
from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import Conversation, iter_conversations, rows_fingerprint
from act_lightning.data.loading import open_rows
from act_lightning.errors import ActError
from tests.tiny import write_jsonl

ROWS = [{"prompt": f'{i}, "é"\n?', "answer": "" if i == 2 else f"a\u2028{i}"} for i in range(5)]
WHERE = "data.abilities.x"


def read_rows(settings: AbilityData, where: str) -> list[Conversation]:
    return [messages for _, messages in iter_conversations(settings, where)]


def as_json(path: Path, rows: list[dict[str, Any]], indent: int | None = None) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8-sig")


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def as_folder(path: Path, rows: list[dict[str, Any]]) -> None:
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(str(path))


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "x.jsonl": write_jsonl,
    "x.json": as_json,
    "lines.json": write_jsonl,
    "x.csv": as_csv,
    "x.parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
    "folder": as_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_same_rows_in_any_order_from_every_kind(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    source = open_rows(AbilityData(str(tmp_path / name)), WHERE)
    assert [row for _, row in source] == ROWS == [row for _, row in source]
    places = [place for place, _ in source]
    assert list(source.select([3, 0, 4])) == [(places[i], ROWS[i]) for i in (3, 0, 4)]
    assert len(set(places)) == 5
    assert all(place.startswith(str(tmp_path / name)) for place in places)


def test_lines_of_csv_count_those_within_quotes(tmp_path: Path) -> None:
    as_csv(tmp_path / "x.csv", ROWS[:2])
    assert [place[-7:] for place, _ in open_rows(AbilityData(str(tmp_path / "x.csv")), WHERE)] == ["x.csv:2", "x.csv:4"]


def test_patterns_read_files_by_name(tmp_path: Path) -> None:
    for name, row in zip(("b", "a", "c"), ROWS, strict=False):
        write_jsonl(tmp_path / f"{name}.jsonl", [row])
    conversations = list(iter_conversations(AbilityData(f"{tmp_path}/[ab].jsonl"), WHERE))
    assert [place for place, _ in conversations] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b.jsonl:1"]
    write_jsonl(tmp_path / "[ab].jsonl", ROWS[3:4])  # a file of this very name comes first
    assert len(read_rows(AbilityData(f"{tmp_path}/[ab].jsonl"), WHERE)) == 1
    with pytest.raises(ActError, match="must be an existing file"):
        read_rows(AbilityData(f"{tmp_path}/*.csv"), WHERE)


@pytest.mark.parametrize(
    ("name", "content", "place", "message"),
    [
        ("x.json", '[{"prompt": "x"}, {"prompt" "y"}]', "x.json row 2", "is not JSON: Expecting ':' delimiter"),
        ("x.json", '[{"prompt": "x"} {"prompt": "y"}]', "x.json row 1", "is not JSON: expected ',' or ']', found '{'"),
        ("x.json", '[{"prompt": "x"}, 3]', "x.json row 2", "must be an object"),
        ("x.json", '[{"prompt": "x"}', "x.json row 1", "is not JSON: expected ',' or ']', found the end of the file"),
        ("x.json", '[{"prompt": "x', "x.json row 1", "is not JSON: Unterminated string"),
        ("x.json", "[{}] []", "x.json row 1", "is not JSON: unexpected '[' after the array"),
        ("x.json", "[{},]", "x.json row 2", "is not JSON: Expecting value"),
        ("x.json", '{"prompt":\n "x"}', "x.json:1", "is not JSON in UTF-8"),
        ("x.json", b'[{"prompt": "\xff"}]', "x.json", "must be text in UTF-8"),
        ("x.csv", b"prompt,answer\n\xff,a", "x.csv", "must be text in UTF-8"),
        ("x.csv", "prompt,answer\na,b\n\nc\n", "x.csv:4", "must have 2 fields as the header has, but has 1"),
        ("x.csv", 'prompt,answer\na,"b\n', "x.csv:2", "is not CSV: unexpected end of data"),
        ("x.csv", 'prompt,answer\na,"b"c\n', "x.csv:2", "is not CSV: ',' expected"),
        ("x.csv", "prompt,prompt\na,b\n", "x.csv:1", "must name each column once"),
        ("x.parquet", b"PAR1 of which nothing follows", "path", "cannot be read"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str | bytes, place: str, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ActError) as caught:
        list(open_rows(AbilityData(str(tmp_path / name)), WHERE))
    (issue,) = caught.value.issues
    assert issue.setting.endswith(place)
    assert message in str(issue)


@pytest.mark.parametrize(("name", "empty"), [("x.json", ""), ("x.json", " [ ] "), ("x.csv", ""), ("x.csv", "a,b\n\n")])
def test_empty_files(tmp_path: Path, name: str, empty: str) -> None:
    (tmp_path / name).write_text(empty)
    with pytest.raises(ActError, match="holds no rows"):
        read_rows(AbilityData(str(tmp_path / name)), WHERE)


values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), st.lists, max_leaves=4)


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), max_size=6),
    indent=st.sampled_from([None, 1]),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_array_read_in_any_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], indent: int | None
) -> None:
    monkeypatch.setattr(files, "_CHUNK", 5)
    as_json(tmp_path / "x.json", rows, indent)
    assert [row for _, row in open_rows(AbilityData(str(tmp_path / "x.json")), WHERE)] == rows


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_files_are_never_held_whole(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "p" * 9000, "answer": str(i)} for i in range(900)]
    WRITERS[name](tmp_path / name, rows)
    tracemalloc.start()
    count = sum(1 for _ in iter_conversations(AbilityData(str(tmp_path / name)), WHERE))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 900
    assert peak < 5_000_000 < (tmp_path / name).stat().st_size


def test_saved_splits(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(str(tmp_path / "splits"))
    data.save_to_disk(str(tmp_path / "whole"))
    assert len(read_rows(AbilityData(str(tmp_path / "splits"), split="test"), WHERE)) == 1
    for split in (None, "dev"):
        with pytest.raises(ActError, match=r"must name one split. Choose one of train, test."):
            read_rows(AbilityData(str(tmp_path / "splits"), split=split), WHERE)
    with pytest.raises(ActError, match="holds one data set without splits"):
        read_rows(AbilityData(str(tmp_path / "whole"), split="test"), WHERE)
    (tmp_path / "whole" / "state.json").write_text("{}")
    with pytest.raises(ActError, match=r"data.abilities.x.path = .*whole.*: cannot be read"):
        read_rows(AbilityData(str(tmp_path / "whole")), WHERE)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the hub, which has one set of two splits."""
    requests: list[Any] = []

    def load(path: str, name: str | None, split: str | None, revision: str | None, streaming: bool = False) -> Any:
        requests.append((path, name, split, revision, streaming))
        table = datasets.Dataset.from_list(ROWS)
        one = table.to_iterable_dataset() if streaming else table
        return one if split else (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(a=one, b=one)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return requests


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_set(hub: list[Any], streaming: bool) -> None:
    chosen = AbilityData(
        "owner/set", name="en", split="a", revision="abc", streaming=streaming, shuffle_seed=1, limit=3
    )
    conversations = list(iter_conversations(chosen, WHERE))
    assert hub == [("owner/set", "en", "a", "abc", streaming)]
    assert [place for place, _ in conversations] == [f"owner/set row {number}" for number in (3, 4, 5)]
    assert [messages[0]["content"] for _, messages in conversations] == [ROWS[number]["prompt"] for number in (2, 3, 4)]
    with pytest.raises(ActError, match=r"split = None: must name one split. Choose one of a, b."):
        read_rows(AbilityData("owner/set", streaming=streaming), WHERE)


def test_stream_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        yield ROWS[0]
        raise ConnectionError("gone")

    stream = datasets.IterableDataset.from_generator(broken)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: stream)
    rows = iter_conversations(AbilityData("owner/set", streaming=True), WHERE)
    assert next(rows).location == "owner/set row 1"
    with pytest.raises(ActError, match=r"cannot be loaded: gone"):
        next(rows)


def fingerprint(path: Path | str, **chosen: Any) -> str | None:
    return rows_fingerprint(AbilityData(str(path), **chosen), WHERE)


@pytest.mark.parametrize("name", WRITERS)
def test_fingerprint_follows_rows_and_settings(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    first = fingerprint(tmp_path / name)
    assert first is not None
    assert len(first) == 64
    assert first == fingerprint(tmp_path / name, template="{prompt}")
    others = [
        fingerprint(tmp_path / name, **chosen) for chosen in ({"limit": 4}, {"skip": 1}, {"filter": "answer != x"})
    ]
    WRITERS[name](tmp_path / f"new-{name}", ROWS[:4])
    assert len({first, *others, fingerprint(tmp_path / f"new-{name}")}) == 5


def test_fingerprint_of_the_hub_and_the_laboratory(hub: list[Any]) -> None:
    assert fingerprint("owner/set", split="a") == fingerprint("owner/set", split="a") is not None
    assert fingerprint("owner/set", split="a", streaming=True) is None  # nobody can say which commit this is
    pinned = {"split": "a", "streaming": True, "revision": "0" * 40}
    assert fingerprint("owner/set", **pinned) == fingerprint("owner/set", **pinned) is not None
    assert fingerprint("lab:words-de") == fingerprint("lab:words-de") != fingerprint("lab:words-de", split="test")
