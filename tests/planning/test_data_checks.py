"""What ``plan`` finds in the first rows of local sets, and that ``fit`` refuses the same before it trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.front_door import Config, basic, call, run, write_yaml
from tests.tiny import tiny_tokenizer, write_jsonl

ROWS = [{"prompt": f"What is {i} + 1?", "answer": f"It is {i + 1}."} for i in range(6)]


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path) -> Config:
    for folder, name in ((target_folder, "target"), (source_folder, "source")):
        shutil.copytree(folder, tmp_path / name)
    return basic(tmp_path, tmp_path / "target", tmp_path / "source", write_jsonl(tmp_path / "d.jsonl", ROWS))


def errors(config: Config, verb: str = "fit") -> list[str]:
    """What a plan finds that stops a run."""
    path = write_yaml(Path(config["trainer"]["default_root_dir"]).with_name("plan.yaml"), config)
    content: dict[str, Any] = json.loads(call("plan", "--config", path, "--json", "--for", verb).out)
    return [f"{item['setting']}: {item['message']}" for item in content["problems"] if item["level"] == "error"]


def other_tokenizer(folder: Path) -> None:
    """The same tokens in another order."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    letters = [token for token in vocabulary if len(token) == 1]
    numbers = [vocabulary[token] for token in letters]
    vocabulary.update(zip(letters, [*numbers[1:], numbers[0]], strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(content))


def token_beyond(folder: Path) -> None:
    """A token that the text uses, and that has no row in the embedding."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["What"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("case", ["fine", "columns", "json", "evaluation", "tokenizer", "id", "source's id"])
def test_plan_finds_what_fit_refuses(case: str, config: Config, tmp_path: Path) -> None:
    rows, expected = tmp_path / "d.jsonl", ""
    if case == "columns":
        write_jsonl(rows, [{"query": "1 + 1?", "reply": "2"}])
        expected = "must have one of the shapes"
    elif case == "json":
        rows.write_text(json.dumps(ROWS[0]) + '\n{"prompt": \n')
        expected = "d.jsonl:2"
    elif case == "evaluation":
        bad = write_jsonl(tmp_path / "e.jsonl", [{"prompt": "1 + 1?", "answer": " "}])
        config["data"]["evaluations"] = {"e": {"path": str(bad), "role": "keep"}}
        expected = "e.jsonl:1"
    elif case == "tokenizer":
        other_tokenizer(tmp_path / "source")
        expected = "must be encoded alike by target and source"
    elif case == "id":
        token_beyond(tmp_path / "target")
        token_beyond(tmp_path / "source")
        expected = "must have token ids below 300, the rows of the embedding of target"
    elif case == "source's id":
        token_beyond(tmp_path / "source")
        expected = "must be encoded alike by target and source"
    if not expected:
        assert errors(config) == []
        return
    assert any(expected in error for error in errors(config)), errors(config)
    outcome = run("fit", config)
    assert outcome.status == 1
    assert expected in outcome.err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_merge_from_saved_scores_reads_no_rows(config: Config, tmp_path: Path) -> None:
    assert run("profile", config).status == 0
    config["transfer"]["scores"] = str(tmp_path / "run" / "scores")
    (tmp_path / "d.jsonl").write_text("{")
    assert errors(config, "merge") == []
