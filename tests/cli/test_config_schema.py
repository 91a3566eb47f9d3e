"""The JSON schema of a config, by a validator of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from act_lightning.cli.config_schema import FILE
from scripts import schema
from tests.cli.test_configs import CONFIGS, ROOT
from tests.front_door import call, write_yaml

VALIDATOR = jsonschema.Draft202012Validator(json.loads(FILE.read_text(encoding="utf-8")))


def mistakes(content: Any) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in VALIDATOR.iter_errors(content)]


def test_it_is_what_the_parsers_say() -> None:
    """Else run python -m scripts.schema."""
    assert schema.text() == FILE.read_text(encoding="utf-8")


def test_it_is_a_schema_and_describes_every_setting() -> None:
    VALIDATOR.check_schema(VALIDATOR.schema)
    for section, content in VALIDATOR.schema["properties"].items():
        for name, setting in content.get("properties", {}).items():
            assert setting.get("description"), f"{section}.{name}"


@pytest.mark.parametrize("arguments", [(), ("--path",)])
def test_the_verb_prints_it_or_where_it_lies(arguments: tuple[str, ...]) -> None:
    outcome = call("config-schema", *arguments)
    assert outcome.status == 0
    text = Path(outcome.out.strip()).read_text(encoding="utf-8") if arguments else outcome.out
    assert json.loads(text) == VALIDATOR.schema


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_it_accepts_every_shipped_config(file: Path) -> None:
    assert mistakes(yaml.safe_load(file.read_text(encoding="utf-8"))) == []


def test_it_accepts_a_printed_config(tmp_path: Path) -> None:
    config = {"model": {"target": "lab:specialist"}, "data": {"abilities": {"sums": {"path": "lab:sums"}}}}
    config |= {"profile": {"sources": [{"model": "lab:generalist", "abilities": ["sums"]}]}}
    printed = call("fit", "--config", write_yaml(tmp_path / "c.yaml", config), "--print_config")
    assert printed.status == 0, printed.err
    assert mistakes(yaml.safe_load(printed.out)) == []


@pytest.mark.parametrize(
    ("section", "content", "place"),
    [
        ("model", {"aim": "x"}, "model"),
        ("net", {"target": "x"}, ""),
        ("model", {"learning_rate": "fast"}, "model.learning_rate"),
        ("data", {"abilities": {"sums": {"path": "a.jsonl", "limit": "many"}}}, "data.abilities.sums"),
        ("data", {"abilities": {"sums": {"fields": {}}}}, "data.abilities.sums"),
        ("data", {"evaluations": {"sums": {"path": "a.jsonl", "role": "both"}}}, "data.evaluations.sums"),
        ("data", {"packing": "often"}, "data.packing"),
        ("profile", {"sources": [{"model": "x", "abilities": ["sums"], "scale": "big"}]}, "profile.sources"),
        ("profile", {"sources": {"model": "x"}}, "profile.sources"),
        ("transfer", {"share": "rows"}, "transfer.share"),
        ("transfer", {"selection": {"init_args": {}}}, "transfer.selection"),
        ("transfer", {"exclude": "lm_head"}, "transfer.exclude"),
        ("trainer", {"precision": "bf17"}, "trainer.precision"),
        ("trainer", {"max_epochs": 1.5}, "trainer.max_epochs"),
        ("trainer", {"callbacks": [{"class_path": "a.B", "arguments": {}}]}, "trainer.callbacks"),
        ("sweep", {"scales": {}}, "sweep.scales"),
        ("seed_everything", "random", "seed_everything"),
    ],
)
def test_it_refuses_what_the_parsers_refuse(section: str, content: Any, place: str, tmp_path: Path) -> None:
    found = mistakes({section: content})
    assert [text for text in found if text.startswith(f"{place}:") or not place], found
    file = write_yaml(tmp_path / "bad.yaml", {"model": {"target": "lab:specialist"}} | {section: content})
    assert call("plan", "--config", file, "--for", "sweep").status == 2
