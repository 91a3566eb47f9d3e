"""What a verb says: what it wrote, which command comes next, and nothing twice or about other packages."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

import pytest

from tests.front_door import Config, Outcome, basic, call, changed, run, write_yaml
from tests.tiny import write_jsonl

NEXT = re.compile(r"^next: python -m act_lightning (.*)$", re.MULTILINE)
PROGRESS = {"enable_progress_bar": True, "enable_model_summary": ...}


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    """As a user writes it: progress bars are on; with a name that is longer than a column."""
    config = basic(tmp_path, target_folder, source_folder, ability_file)
    sets = {}
    for name, role in (("a-set-with-a-name-that-fills-a-line", "keep"), ("lost", "recover")):
        path = write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"Say {i}", "answer": "four"} for i in range(4)])
        sets[name] = {"path": str(path), "role": role, "max_new_tokens": 3}
    for name in ("enable_progress_bar", "enable_model_summary"):
        config["trainer"].pop(name)
    config["data"] |= {"evaluations": sets, "validation": 0.25}
    return config


def follow(outcome: Outcome) -> Outcome:
    """The outcome of the command that an outcome names as next."""
    assert outcome.status == 0, outcome.err
    (command,) = NEXT.findall(outcome.err)
    return call(*shlex.split(command))


def test_each_next_command_works_until_the_report(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = config["trainer"]["default_root_dir"]
    inspected = call("data", "inspect", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert "a-set-with-a-name-that-fills-a-line" in inspected.out
    assert not [record for record in caplog.records if "samples" in record.getMessage()], "the table has them"
    planned = follow(inspected)
    assert "an update covers" not in planned.out, "16 samples are the paper's"
    fitted = follow(planned)
    assert fitted.out == ""
    assert "\r" not in fitted.err, "standard error is no terminal here"
    tested = follow(fitted)
    assert f"results of {root}/model written to {root}/evaluations" in tested.out
    carded = follow(tested)
    assert f"card written to {root}/model/README.md" in carded.out
    assert NEXT.findall(carded.err) == [f"replay {root}/model"]
    profiled = run("profile", config)
    assert "merge" in NEXT.findall(profiled.err)[0]
    tested = follow(follow(profiled))
    assert f"results of {root}/merged written to {root}/evaluations" in tested.out
    messages = "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.INFO).split("\n")
    assert not re.search(r"PU available|Trainer\.fit|litlogger|, 0 ", "\n".join(messages))
    assert f"scores written to {root}/scores" in messages
    assert f"model written to {root}/model" in messages
    assert f"merged model written to {root}/merged" in messages


def test_a_patch_is_followed_to_its_end(target_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    made = call("patch", "make", "--base", target_folder, "--tuned", source_folder, "--out", tmp_path / "p.safetensors")
    reverted = follow(follow(made))
    assert f"model written to {tmp_path}/p-applied-reverted" in reverted.out
    assert "made from" in follow(reverted).out


def test_validation_shows_each_metric_once(config: Config) -> None:
    outcome = run("validate", changed(config, "data.validation", ["d"]))
    assert outcome.out.count("perplexity") == 1
    (row,) = [line for line in outcome.out.splitlines() if line.strip().startswith("d ")]
    assert re.fullmatch(r" d +\d+\.\d{4} +[\d.]+ +[\d.]+ ", row), "one set has no mean"
    split = run("validate", changed(config, "data.validation", 0.25))
    assert "mean" not in split.out, "as long as there is one ability"


def test_a_run_without_evaluations_names_what_it_has(config: Config) -> None:
    outcome = run("fit", changed(changed(config, "profile", ...), "data.evaluations", ...))
    target, root = config["model"]["target"], config["trainer"]["default_root_dir"]
    expected = f"patch make --base {target} --tuned {root}/model --out {root}/model.safetensors"
    assert NEXT.findall(outcome.err) == [expected]
    assert "made from" in follow(outcome).out


def test_no_secret_stands_in_the_next_command(config: Config) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "x"}}
    outcome = run("plan", changed(config, "trainer.logger", logger), "--data.evaluations.lost.path", "hf://u:pw@x/y")
    assert "pw" not in outcome.err
