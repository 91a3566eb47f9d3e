"""``data inspect`` and ``data translate`` as a user meets them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.front_door import basic, call, run, write_yaml
from tests.tiny import write_jsonl
from tests.translation.server import Answer, serving, translated


def test_inspect_shows_what_a_run_would_use(
    tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path
) -> None:
    config = basic(tmp_path, target_folder, source_folder, ability_file)
    config["data"]["evaluations"] = {"e": {"path": str(ability_file), "role": "keep", "limit": 2}}
    shown = call("data", "inspect", "--config", write_yaml(tmp_path / "c.yaml", config))
    assert shown.status == 0, shown.err
    assert "ability d, sample 1 of 3" in shown.out
    assert "warning: d and e share prompts, 100.0 % of one of them" in " ".join(shown.out.split())
    found = call("data", "inspect", "--config", tmp_path / "c.yaml", "--json")
    assert [one["figures"]["rows"] for one in json.loads(found.out)["sets"]] == [24, 2]
    assert not (tmp_path / "run").exists()
    wrong = call("data", "inspect", "--config", tmp_path / "c.yaml", "--data.max_length", 0)
    assert (wrong.status, wrong.out) == (1, "")
    assert wrong.err.startswith("error: data.max_length = 0: must be at least 1")


def test_translate_writes_an_ability(tmp_path: Path, target_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows = [{"prompt": f"How much is {i} and nothing more?", "answer": f"That is {i}."} for i in range(3)]
    config: dict[str, Any] = {
        "data": {"abilities": {"sums": {"path": str(write_jsonl(tmp_path / "sums.jsonl", rows))}}},
        "translate": {"languages": ["sw", "hu"], "only": ["sw"], "out": str(tmp_path / "out"), "key_variable": None},
    }
    file = write_yaml(tmp_path / "c.yaml", config)
    assert "translate.model = None: must name a model" in call("data", "translate", "--config", file).err
    with serving() as server:
        now = ("--translate.base_url", server.url, "--translate.model", "m", "--translate.retries", 0)
        server.answer = lambda messages, before: Answer("", 500, whole=True) if not before else translated(messages)
        broken = call("data", "translate", "--config", file, *now)
        assert broken.status == 1  # it has asked for all, and got nothing
        assert not (tmp_path / "out" / "sums-sw.parquet").exists()
        whole = call("data", "translate", "--config", file, *now)
    assert whole.status == 0, whole.err
    assert "sums-sw" in whole.out
    assert len(pyarrow.parquet.read_table(tmp_path / "out" / "sums-sw.parquet")) == 3
    trained = {"d": {"path": str(tmp_path / "out" / "sums-sw.parquet")}}
    again = {"model": {"target": str(target_folder)}, "data": {"abilities": trained}}
    assert run("plan", again | {"trainer": {"default_root_dir": str(tmp_path / "run")}}).status == 0


def test_translate_takes_the_config_of_a_run(
    tmp_path: Path, target_folder: Path, source_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows = [{"prompt": f"How much is {i} and nothing more?", "answer": f"That is {i}."} for i in range(3)]
    config = basic(tmp_path, target_folder, source_folder, write_jsonl(tmp_path / "sums.jsonl", rows))
    file = write_yaml(tmp_path / "run.yaml", config | {"seed_everything": 7})
    overlay = {"languages": ["sw"], "out": str(tmp_path / "out"), "key_variable": None, "model": "m", "retries": 0}
    with serving() as server:
        server.answer = lambda messages, before: translated(messages)
        options = ("--translate", json.dumps(overlay | {"base_url": server.url}), "--trainer.max_epochs", 2)
        whole = call("data", "translate", "--config", file, *options)
    assert whole.status == 0, whole.err
    assert f"translations, ledger and report written to {tmp_path}/out" in whole.out
    (following,) = [line for line in whole.err.splitlines() if line.startswith("next: ")]
    inspected = call(*shlex.split(following)[4:])
    assert inspected.status == 0, inspected.err
    assert "ability d-sw, sample 1 of 3" in inspected.out


def test_the_verb_alone() -> None:
    assert "{inspect,translate}" in call("data", "--help").out or "inspect" in call("data", "--help").out
    assert call("data").status == 2
    assert "invalid choice: 'look'" in call("data", "look").err
