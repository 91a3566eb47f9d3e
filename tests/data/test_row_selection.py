"""Which rows are used: conditions, shuffles, quotas, and sets that share no row."""

from __future__ import annotations

import random
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from act_lightning.data import files
from act_lightning.data.ability_data import AbilityData, PerGroup
from act_lightning.data.conversations import iter_conversations
from act_lightning.errors import ActError
from tests.tiny import write_jsonl

KINDS = ("physics", "chemistry", "biology", "art")
ROWS = [
    {"prompt": str(i), "answer": f"a{i}", "kind": KINDS[i * 3 % 7 % 4], "score": i / 10, "big": i > 20, "level": i % 3}
    for i in range(40)
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "x.jsonl", ROWS)


def used(path: Path | str, **chosen: Any) -> list[int]:
    conversations = iter_conversations(AbilityData(str(path), **chosen), "data.abilities.x")
    return [int(conversation.messages[0]["content"]) for conversation in conversations]


@pytest.mark.parametrize(
    ("condition", "keeps"),
    [
        ("kind == physics", lambda row: row["kind"] == "physics"),
        (" kind!=physics ", lambda row: row["kind"] != "physics"),
        ("big == true", lambda row: row["big"]),
        ("level == 1", lambda row: row["level"] == 1),
        ("answer == a4", lambda row: row["answer"] == "a4"),
        ("kind in [physics, art]", lambda row: row["kind"] in ("physics", "art")),
        ("kind not  in [ physics,art ]", lambda row: row["kind"] not in ("physics", "art")),
        ("score >= 1.5", lambda row: row["score"] >= 1.5),
        ("score<1", lambda row: row["score"] < 1),
        ("prompt > 1e1", lambda row: int(row["prompt"]) > 10),
        (["score <= 2", "level != 0"], lambda row: row["score"] <= 2 and row["level"] != 0),
        ([], lambda row: True),
        (None, lambda row: True),
    ],
)
def test_filter(file: Path, condition: Any, keeps: Any) -> None:
    assert used(file, filter=condition) == [i for i, row in enumerate(ROWS) if keeps(row)]


def plainly(chosen: AbilityData) -> list[int]:
    """The rule once more, with everything in lists."""
    kept = [i for i, row in enumerate(ROWS) if chosen.filter is None or row["big"]]
    if chosen.shuffle_seed is not None:
        random.Random(chosen.shuffle_seed).shuffle(kept)
    if quota := chosen.per_group:
        names = quota.groups or KINDS
        parts = [[i for i in kept if ROWS[i]["kind"] == name][quota.skip :][: quota.limit] for name in names]
        kept = [i for i in kept if any(i in part for part in parts)]
    return kept[chosen.skip :][: chosen.limit]


quotas = st.builds(
    PerGroup, st.just("kind"), st.integers(1, 2), st.sampled_from([None, ["physics", "art"]]), st.integers(0, 1)
)


@given(
    condition=st.sampled_from([None, "big == true"]),
    seed=st.none() | st.integers(0, 9),
    quota=st.none() | quotas,
    skip=st.integers(0, 3),
    limit=st.none() | st.integers(1, 9),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_order_of_choices(
    file: Path, monkeypatch: pytest.MonkeyPatch, condition: Any, seed: Any, quota: Any, skip: int, limit: Any
) -> None:
    monkeypatch.setattr(files, "_MAX_ROWS_HELD", 3)
    chosen = AbilityData(str(file), filter=condition, shuffle_seed=seed, per_group=quota, skip=skip, limit=limit)
    expected = plainly(chosen)
    conversations = iter_conversations(chosen, "data.abilities.x")
    if expected:
        assert [int(one.messages[0]["content"]) for one in conversations] == expected
    else:
        with pytest.raises(ActError, match="leaves no row"):
            list(conversations)


def test_groups_of_a_saved_config(file: Path) -> None:
    saved = asdict(AbilityData(str(file), per_group=PerGroup("kind", 1, ["physics", "art"])))
    assert used(**saved) == [0, 1]


def test_disjoint_parts_of_one_shuffle(file: Path) -> None:
    parts = [used(file, shuffle_seed=5, skip=15 * part, limit=15) for part in range(3)]
    assert sorted(number for part in parts for number in part) == list(range(40))


def test_nothing_is_read_beyond_the_last_row_that_is_used(file: Path) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:9]) + "\nbroken\n")
    assert used(file, limit=9) == list(range(9))
    assert used(file, per_group=PerGroup("kind", 2, ["physics"])) == [0, 6]
    rows = iter_conversations(AbilityData(str(file)), "data.abilities.x")
    assert len(list(islice(rows, 9))) == 9
    with pytest.raises(ActError, match=r"x.jsonl:10"):
        next(rows)


def test_groups_without_enough_rows(file: Path) -> None:
    with pytest.raises(ActError) as caught:
        used(file, per_group=PerGroup("kind", 500, ["physics", "history"]), filter="big == true")
    message = str(caught.value)
    assert "per_group.groups = ['history', 'physics']: must have 500 rows each" in message
    assert "after filter there are 0 of history, 5 of physics" in message
    assert "The groups are biology (6), physics (5), chemistry (5), art (3)" in message


@pytest.mark.parametrize(
    ("chosen", "setting", "message"),
    [
        ({"filter": "kind is odd"}, "filter", "must read column == value"),
        ({"filter": ["big == true", "score > x"]}, "filter", "must read column == value"),
        ({"filter": "kind in physics"}, "filter", "must read column == value"),
        ({"filter": "sort == odd"}, "x.jsonl:1, filter", "must be a column of every row. The row has prompt, answer"),
        ({"filter": "kind > 3"}, "x.jsonl:1, kind", "must be a number, for filter"),
        ({"filter": "kind == neither"}, "filter", "leaves no row. The first row"),
        ({"skip": 40}, "skip", "leaves no row"),
        ({"per_group": PerGroup("kind", 1, skip=40)}, "per_group", "leaves no row"),
        ({"skip": -1}, "skip", "must be at least 0"),
        ({"limit": 0}, "limit", "must be at least 1"),
        ({"per_group": PerGroup("sort", 3)}, "x.jsonl:1, per_group.column", "must be a column of every row"),
        ({"per_group": PerGroup("kind", 0)}, "per_group.limit", "must be at least 1"),
        ({"per_group": PerGroup("kind", 1, skip=-1)}, "per_group.skip", "must be at least 0"),
        ({"per_group": PerGroup("kind", 1, [])}, "per_group.groups", "must name groups, each once"),
        ({"per_group": PerGroup("kind", 1, ["a", "a"])}, "per_group.groups", "must name groups, each once"),
        ({"streaming": True}, "streaming", "has no meaning for"),
        ({"path": "owner/set", "streaming": True, "shuffle_seed": 1}, "streaming", "no limit bounds them"),
    ],
)
def test_wrong_choices(file: Path, chosen: dict[str, Any], setting: str, message: str) -> None:
    with pytest.raises(ActError) as caught:
        used(**({"path": file} | chosen))
    assert caught.value.issues[0].setting.endswith(setting)
    assert message in str(caught.value)
