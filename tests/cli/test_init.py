"""The verb ``init``: what it reads from files, what it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from act_lightning.cli import init
from act_lightning.cli.init import ability_names
from tests.cli.test_config_schema import mistakes
from tests.cli.test_configs import ROOT
from tests.front_door import Outcome, call
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

ROWS = [{"prompt": f"Say {number}", "answer": "two words"} for number in range(20)]


def renamed(prompt: str, answer: str, **others: object) -> list[dict[str, Any]]:
    return [{**others, prompt: row["prompt"], answer: row["answer"]} for row in ROWS]


def as_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "jsonl": write_jsonl,
    "json": as_json,
    "csv": as_csv,
    "parquet": as_parquet,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two siblings and a set."""
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model("qwen2"), tiny_tokenizer(), tmp_path / "target")
    save_model(sibling_of(tiny_model("qwen2"), 1), tiny_tokenizer(), tmp_path / "source")
    write_jsonl("words.jsonl", ROWS)
    return tmp_path


def written(*arguments: object) -> dict[str, Any]:
    """The config that ``init`` writes; it must fit the schema, and its plan must hold no error."""
    outcome = call("init", "target", "source", *arguments)
    assert outcome.status == 0, outcome.err
    content: dict[str, Any] = yaml.safe_load(Path("recover.yaml").read_text(encoding="utf-8"))
    assert mistakes(content) == []
    assert outcome.out.splitlines()[-1] == "next: python -m act_lightning plan --config recover.yaml"
    plan = call("plan", "--config", "recover.yaml", "--json")
    assert plan.status == 0, plan.out
    return content


def test_a_written_config_plans_and_runs(folder: Path) -> None:
    write_jsonl("sums.jsonl", renamed("question", "solution"))
    content = written("words.jsonl", "--keep", "sums.jsonl")
    assert content["data"]["abilities"] == {
        "words": {"path": "words.jsonl"},
        "sums": {"path": "sums.jsonl", "columns": {"prompt": "question", "answer": "solution"}},
    }
    assert content["profile"]["sources"] == [{"model": "source", "abilities": ["words"]}]
    assert content["data"]["max_length"] == 64
    text = Path("recover.yaml").read_text(encoding="utf-8")
    (schema,) = [line.partition("$schema=")[2] for line in text.splitlines() if "$schema=" in line]
    assert Path(schema).is_file()
    assert max(map(len, text.splitlines()[8:])) <= 80
    outcome = call("fit", "--config", "recover.yaml", "--trainer.accelerator", "cpu")
    assert outcome.status == 0, outcome.err
    assert (folder / "runs" / "target" / "model" / "config.json").is_file()


@pytest.mark.parametrize("extension", WRITERS)
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (ROWS, None),
        (renamed("instruction", "output"), None),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3, None),
        (renamed("Question", "Response"), {"prompt": "Question", "answer": "Response"}),
        (renamed("prompt", "answer", response="x"), {"prompt": "prompt", "answer": "answer"}),
    ],
    ids=["ours", "alpaca", "messages", "other names", "two answers"],
)
def test_columns_are_seen_in_every_format(
    extension: str, rows: list[dict[str, Any]], columns: dict[str, str] | None, folder: Path
) -> None:
    if extension == "csv" and "messages" in rows[0]:
        pytest.skip("a cell of CSV is text")
    WRITERS[extension](Path(f"set.{extension}"), rows)
    content = written(f"set.{extension}")
    assert content["data"]["abilities"]["set"].get("columns") == columns


def test_unknown_columns_can_be_named(folder: Path) -> None:
    write_jsonl("set.jsonl", renamed("a", "b"))
    refused = call("init", "target", "source", "set.jsonl")
    assert (refused.status, Path("recover.yaml").exists()) == (1, False)
    assert "has a, b" in refused.err
    assert "--prompt COLUMN --answer COLUMN" in refused.err
    content = written("set.jsonl", "--prompt", "a", "--answer", "b")
    assert content["data"]["abilities"]["set"]["columns"] == {"prompt": "a", "answer": "b"}


def test_a_target_without_chat_template_gets_another(folder: Path) -> None:
    save_model(tiny_model("qwen2"), tiny_tokenizer(template=None), folder / "target")
    (folder / "target" / "chat_template.jinja").unlink(missing_ok=True)
    assert written("words.jsonl")["data"]["template"] == "alpaca"


def test_lengths_stop_at_the_models_positions(folder: Path) -> None:
    write_jsonl("words.jsonl", [{"prompt": "word " * 2000, "answer": "end"}, *ROWS])
    positions = json.loads((folder / "target" / "config.json").read_text())["max_position_embeddings"]
    assert written("words.jsonl")["data"]["max_length"] == positions


def test_the_transfer_is_the_recommended_one() -> None:
    recommended = yaml.safe_load((ROOT / "configs" / "recommended.yaml").read_text(encoding="utf-8"))["transfer"]
    assert recommended.pop("selection")["class_path"].endswith("Attribution")
    content = yaml.safe_load(init._TRANSFER)["transfer"]
    assert content.pop("selection") == "attribution"
    assert content == recommended


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["data/math.jsonl"], ["math"]),
        (["train_math_en.jsonl", "train_science_ar.parquet"], ["math-en", "science-ar"]),
        (["math-train.json", "words-train.json"], ["math", "words"]),
        (["a/test.jsonl", "b/test.jsonl"], ["a-test", "b-test"]),
        (["a/b/x.jsonl", "c/b/x.jsonl"], ["b-x-1", "b-x-2"]),
        (["übung 1.jsonl"], ["bung-1"]),
        (["???.jsonl"], ["ability"]),
        (["meta-math/MetaMathQA"], ["MetaMathQA"]),
    ],
)
def test_names_come_from_files(paths: list[str], names: list[str]) -> None:
    assert ability_names(paths) == names


def refused(*arguments: object) -> Outcome:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    outcome = call("init", *arguments)
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return outcome


def test_an_earlier_file_is_replaced_only_when_asked(folder: Path) -> None:
    Path("recover.yaml").write_text("mine: 1\n")
    assert "--overwrite" in refused("target", "source", "words.jsonl").err
    assert "model" in written("words.jsonl", "--overwrite")


def test_what_cannot_be_used_is_refused_and_nothing_is_written(folder: Path) -> None:
    save_model(tiny_model("llama"), tiny_tokenizer(), folder / "stranger")
    (folder / "empty").mkdir()
    write_jsonl("none.jsonl", [])
    Path("broken.jsonl").write_text('{"prompt": "a", "answer"\n')
    Path("binary.parquet").write_bytes(b"\x00\x01PAR1")
    write_jsonl("silent.jsonl", [{"prompt": "a", "answer": ""}])
    for target, source, data, told in (
        ("nowhere", "source", "words.jsonl", "nowhere"),
        ("target", "empty", "words.jsonl", "config.json"),
        ("target", "stranger", "words.jsonl", "SOURCE"),
        ("target", "target", "words.jsonl", "SOURCE"),
        ("target", "source", "missing.jsonl", "missing.jsonl"),
        ("target", "source", "none.jsonl", "no rows"),
        ("target", "source", "broken.jsonl", "broken.jsonl:1"),
        ("target", "source", "binary.parquet", "binary.parquet"),
        ("target", "source", "silent.jsonl", "answer"),
        ("target", "source", "words.txt", "words.txt"),
        ("target", "source", "empty", "empty"),
    ):
        assert told in refused(target, source, data).err
    both = refused("target", "source", "missing.jsonl", "none.jsonl").err
    assert "missing.jsonl" in both
    assert "none.jsonl" in both
    assert "named once" in refused("target", "source", "words.jsonl", "--keep", "words.jsonl").err


def test_a_place_that_cannot_be_written_is_refused(folder: Path) -> None:
    usual = ("target", "source", "words.jsonl", "--out")
    assert ".yaml" in refused(*usual, "target/model.safetensors", "--overwrite").err
    (folder / "is.yaml").mkdir()
    assert "is a folder" in refused(*usual, "is.yaml", "--overwrite").err
    assert "printable" in refused(*usual, "a\nb.yaml").err
    if os.geteuid() != 0:
        (folder / "closed").mkdir(mode=0o555)
        assert "writable" in refused(*usual, "closed/a.yaml").err


def test_strange_names_stay_what_they_are(folder: Path) -> None:
    for name in ("- {x} #é:.jsonl", "on.jsonl", "1e5.jsonl", "a\"b'\\.jsonl", "null.jsonl"):
        Path(name).write_bytes(Path("words.jsonl").read_bytes())
        content = written(name, "--overwrite")
        ((ability, settings),) = content["data"]["abilities"].items()
        assert settings["path"] == name
        assert content["profile"]["sources"][0]["abilities"] == [ability]
