"""Several ``--config`` files: later ones win, abilities and evaluations are merged by key, null removes one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from act_lightning.cli.config_merging import ConfigParser, duplicate_key_issues
from act_lightning.data.ability_data import AbilityData
from tests.front_door import call, write_yaml

BASE = {
    "model": {"target": "somewhere", "learning_rate": 1.0e-4},
    "data": {
        "abilities": {"a": {"path": "a.jsonl", "columns": {"prompt": "question"}}, "b": {"path": "b.jsonl"}},
        "evaluations": {"e": {"path": "e.jsonl", "role": "keep"}},
        "train": ["a"],
    },
    "trainer": {"max_epochs": 3},
}


def printed(tmp_path: Path, *overlays: dict[str, Any], options: tuple[str, ...] = ()) -> dict[str, Any]:
    files = [write_yaml(tmp_path / f"{number}.yaml", overlay) for number, overlay in enumerate((BASE, *overlays))]
    configs = [argument for file in files for argument in ("--config", file)]
    outcome = call("fit", *configs, *options, "--print_config")
    assert outcome.status == 0, outcome.err
    content: dict[str, Any] = yaml.safe_load(outcome.out)
    return content


def non_defaults(entry: dict[str, Any]) -> dict[str, Any]:
    """The settings of an ability that are not defaults."""
    defaults = asdict(AbilityData(path=""))
    return {key: value for key, value in entry.items() if value != defaults[key]}


def test_abilities_of_several_files_are_merged(tmp_path: Path) -> None:
    one, two = {"c": {"path": "c.jsonl"}}, {"d": {"path": "d.jsonl", "limit": 7}}
    config = printed(tmp_path, {"data": {"abilities": one}}, {"data": {"abilities": two}})["data"]["abilities"]
    assert list(config) == ["a", "b", "c", "d"]
    assert non_defaults(config["d"]) == {"path": "d.jsonl", "limit": 7}


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ({"limit": 5}, {"path": "a.jsonl", "columns": {"prompt": "question"}, "limit": 5}),
        ({"path": "other.jsonl"}, {"path": "other.jsonl", "columns": {"prompt": "question"}}),
        ({"columns": {"answer": "reply"}}, {"path": "a.jsonl", "columns": {"prompt": "question", "answer": "reply"}}),
        ({"columns": None}, {"path": "a.jsonl"}),
    ],
)
def test_an_entry_may_be_changed_in_part(tmp_path: Path, overlay: dict[str, Any], expected: dict[str, Any]) -> None:
    config = printed(tmp_path, {"data": {"abilities": {"a": overlay}}})["data"]["abilities"]
    assert non_defaults(config["a"]) == expected
    assert non_defaults(config["b"]) == {"path": "b.jsonl"}


def test_null_removes_an_entry_and_a_later_file_may_restore_it(tmp_path: Path) -> None:
    without = {"data": {"abilities": {"a": None}, "evaluations": {"e": None}}}
    config = printed(tmp_path, without)["data"]
    assert config["abilities"]["a"] is None
    assert config["evaluations"] == {"e": None}
    restored = printed(tmp_path, without, {"data": {"abilities": {"a": {"path": "new.jsonl"}}}})["data"]["abilities"]
    assert non_defaults(restored["a"]) == {"path": "new.jsonl"}


def test_evaluations_are_merged_too(tmp_path: Path) -> None:
    overlay = {"e": {"max_new_tokens": 3}, "f": {"path": "f.jsonl", "role": "recover"}}
    config = printed(tmp_path, {"data": {"evaluations": overlay}})["data"]["evaluations"]
    assert (config["e"]["path"], config["e"]["max_new_tokens"], config["f"]["role"]) == ("e.jsonl", 3, "recover")


def test_everything_else_is_replaced_by_the_later_file(tmp_path: Path) -> None:
    config = printed(tmp_path, {"model": {"learning_rate": 3.0e-5}, "data": {"train": ["b"]}})
    assert (config["model"]["learning_rate"], config["data"]["train"]) == (3.0e-5, ["b"])
    assert (config["model"]["target"], config["trainer"]["max_epochs"]) == ("somewhere", 3)


def test_options_on_the_command_line_come_last(tmp_path: Path) -> None:
    options = ("--data.abilities.a.limit", "2", "--data.abilities.c.path", "c.jsonl", "--trainer.max_epochs", "1")
    config = printed(tmp_path, options=options)
    assert non_defaults(config["data"]["abilities"]["a"])["limit"] == 2
    assert list(config["data"]["abilities"]) == ["a", "b", "c"]
    assert config["trainer"]["max_epochs"] == 1


@pytest.mark.parametrize("content", ["a: b: c\n", "- a list\n", "model: {learning_rate: fast}\n"])
def test_messages_name_the_file_they_are_about(tmp_path: Path, content: str) -> None:
    good, bad = write_yaml(tmp_path / "good.yaml", BASE), tmp_path / "bad.yaml"
    bad.write_text(content)
    outcome = call("fit", "--config", good, "--config", bad)
    assert outcome.status == 2
    assert f"error: {bad}:" in outcome.err
    assert len(outcome.err.splitlines()) < 15, "the usage must not bury the message"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    outcome = call("fit", "--config", tmp_path / "nowhere.yaml")
    assert outcome.status == 2
    assert "nowhere.yaml" in outcome.err


def test_a_parser_that_reads_no_file_adds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ConfigParser(prog="p").error("wrong")
    assert capsys.readouterr().err.endswith("error: wrong\n")


@pytest.mark.parametrize("verb", [("fit",), ("merge",), ("data", "translate")], ids=" ".join)
def test_a_key_that_a_file_gives_twice_is_refused(tmp_path: Path, verb: tuple[str, ...]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("data:\n  abilities:\n    a: {path: a.jsonl}\n    a: {path: b.jsonl}\n", encoding="utf-8")
    outcome = call(*verb, "--config", file)
    assert outcome.status != 0
    assert f"{file}:4 = 'a': must not stand twice in one place, and line 3 has it" in outcome.err


def test_keys_that_are_merged_in_are_not_given_twice() -> None:
    text = "a: &a {path: x, name: y}\nb: {<<: *a, name: z}\nc: [{k: 1}, {k: 2}, {1: x, '1': y}]\nd: *a\n"
    assert duplicate_key_issues(text, "x.yaml") == []
    assert [issue.value for issue in duplicate_key_issues("a: [{k: 1, k: 2}]\nb: {c: {d: 1, d: 1}}", "x")] == ["k", "d"]
    assert duplicate_key_issues("a: [", "x") == [], "the parser says that it is no YAML"
