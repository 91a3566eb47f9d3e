"""A card that the hub's own reader understands, and from which recipe and record can be read back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from act_lightning.cards.card import read_card, render_card
from act_lightning.errors import ActError

TRANSFER: dict[str, Any] = {
    "channels": 1000,
    "sources": {
        "instruct": {
            "model": "/home/me/secret/other",
            "abilities": {"science-ar": {"selected": 10, "tokens": 1234}},
            "parameter_share": 0.0473,
            "scale": 0.4,
            "ratio": 0.01,
        },
        "tulu": {"model": "org/source", "abilities": {}},
    },
    "selection": "activation",
    "method": "task_arithmetic",
    "seed": 42,
}
ABILITIES = {
    "science-ar": {"path": "science-ar.jsonl", "limit": 1500},
    "math-en": {"path": "meta-math/MetaMathQA", "split": "train"},
}
RECIPE = {"model": {"target": "org/base"}, "data": {"abilities": ABILITIES}, "note": "``` | ~~~"}


def record(*licenses: dict[str, str]) -> dict[str, Any]:
    names = ("org/base", "other", "org/source")
    settings = ("model.target", "profile.sources.0.model", "profile.sources.1.model")
    stated = (*licenses, *[{}] * len(names))
    models = {key: {"name": name, "license": one} for key, name, one in zip(settings, names, stated, strict=False)}
    return {"verb": "merge", "models": models, "data": {"data.abilities.science-ar": "ab" * 32}}


def test_card_of_a_transfer() -> None:
    text = render_card(record(), RECIPE, TRANSFER)
    data = ModelCard(text).data
    assert data.base_model == ["org/base", "org/source"]
    assert data.base_model_relation == "merge"
    assert data.datasets == ["meta-math/MetaMathQA"]
    assert data.library_name == "transformers"
    assert data.tags == ["merge", "act-lightning"]
    assert "secret" not in text
    assert "| science-ar | 10 | 1234 |" in text
    assert "4.73% of all parameters" in text
    assert f"| science-ar | science-ar.jsonl | 1500 | {'ab' * 32} |" in text
    assert "| math-en | meta-math/MetaMathQA, train | all | not known |" in text
    assert "````yaml\n" in text, "the fence is longer than any in the recipe"


def test_card_of_plain_fine_tuning() -> None:
    models = {"model.target": {"name": "base", "license": {"license": "apache-2.0"}}}
    card = ModelCard(render_card({"verb": "fit", "models": models}))
    assert card.data.base_model is None
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["act-lightning"]
    assert "without a transfer" in card.text
    assert "## Recipe" not in card.text


@pytest.mark.parametrize(
    ("licenses", "front"),
    [
        ([{"license": "mit"}] * 3, "mit"),
        ([{"license": "llama2"}, {"license": "apache-2.0"}, {"license": "llama2"}], None),
        ([{"license": "mit"}, {"license": "mit"}], None),
        ([], None),
        ([{"license": "other", "license_name": "q"}, {"license": "other", "license_name": "r"}] * 2, None),
    ],
)
def test_a_license_is_stated_only_where_all_bases_state_it(licenses: list[dict[str, str]], front: str | None) -> None:
    text = render_card(record(*licenses), RECIPE, TRANSFER)
    assert ModelCard(text).data.license == front
    assert ("for you to find out" in text) == (front is None)
    stated = (licenses[0].get("license_name") or licenses[0]["license"]) if licenses else "not stated"
    assert any(line.startswith("| org/base |") and stated in line for line in text.splitlines())


def test_recipe_and_record_come_back(tmp_path: Path) -> None:
    text = render_card(record({"license": "mit"}), RECIPE, TRANSFER, [["evaluation", "what"], ["a|b", "c"]])
    assert "| a\\|b | c |" in text
    (tmp_path / "README.md").write_text(text)
    assert read_card(tmp_path) == (RECIPE, record({"license": "mit"}))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# Someone else's", r"must hold the record of a run"),
        (
            render_card(record(), RECIPE, TRANSFER).replace('"verb":', '"verb"'),
            r"must be a readable card \(.*delimiter",
        ),
        ("## Recipe\n\n```yaml\nnot a mapping\n```\n", r"must be a readable card \(.*mappings"),
        ("## Recipe\n\n```yaml\n{\n```\n", r"must be a readable card \(.*flow"),
    ],
)
def test_an_edited_card_is_an_error(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ActError, match=problem):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("## Recipe\n\n```yaml\nx: " + "[" * 500_000 + "\n```\n", "not nested that deeply"),
        ("## Recipe\n\n```yaml\nx: " + "{a: " * 500_000 + "\n```\n", "not nested that deeply"),
        ("## Recipe\n\n```yaml\nx: " + "- " * 500_000 + "\n```\n", "must be a readable card"),
        ("## Recipe\n\n```yaml\n" * 100_000, "must hold the record"),
        ("x" * 5_000_000, "longer than 4,194,304 characters"),
    ],
    ids=["brackets", "braces", "dashes", "openings", "length"],
)
def test_a_card_that_would_take_hours_is_refused_at_once(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    started = time.process_time()
    with pytest.raises(ActError, match=problem):
        read_card(tmp_path)
    assert time.process_time() - started < 5
