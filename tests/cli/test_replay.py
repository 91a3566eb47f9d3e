"""``card`` and ``replay``: a run repeated from its README alone, with the same bits or a list of differences."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from act_lightning.cards.card import new_card
from act_lightning.cli import replay
from tests.front_door import Config, basic, call, changed, left, run
from tests.tiny import write_jsonl

EXPORTS = {"merge": "merged", "fit": "model"}


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    for folder, name in ((target_folder, "target"), (source_folder, "source")):
        shutil.copytree(folder, tmp_path / "models" / name)
    return basic(tmp_path, tmp_path / "models" / "target", tmp_path / "models" / "source", ability_file)


def published(tmp_path: Path, config: Config, verb: str) -> Path:
    """The README of a run, in a folder without anything else of the run."""
    assert run(verb, config).status == 0
    card = tmp_path / "published" / "README.md"
    card.parent.mkdir()
    shutil.copy(tmp_path / "run" / EXPORTS[verb] / "README.md", card)
    assert str(tmp_path) not in card.read_text()
    return card


def record_of(card: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(card.read_text().split("```json\n")[1].split("\n```")[0])
    return record


def replay_options(tmp_path: Path) -> list[str]:
    folders = ["--from", str(tmp_path / "models"), "--from", str(tmp_path)]
    return [*folders, "--out", str(tmp_path / "again"), "--yes"]


@pytest.mark.parametrize("verb", ["merge", "fit"])
def test_the_same_bits_are_made_again(tmp_path: Path, config: Config, verb: str) -> None:
    config = changed(config, "transfer.selection", "random")  # what is drawn is drawn again
    card = published(tmp_path, config, verb)
    outcome = call("replay", "--card", card, *replay_options(tmp_path))
    assert outcome.status == 0, outcome.err
    assert "the same bits as recorded (SHA-256 of every file)" in outcome.out
    files = [tmp_path / root / EXPORTS[verb] / "model.safetensors" for root in ("run", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    sha256 = hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert record_of(card)["result"]["sha256"] == {"model.safetensors": sha256}


def test_it_writes_below_the_cards_folder_unless_told(tmp_path: Path, config: Config) -> None:
    card = published(tmp_path, config, "merge")
    folders = [word for name in ("models", ".") for word in ("--from", tmp_path / name)]
    outcome = call("replay", card.parent, *folders, "--yes")
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "published" / "replay" / "merged" / "model.safetensors").is_file()
    assert f"--tuned {tmp_path}/published/replay/merged" in outcome.err
    assert "next: python -m act_lightning test" not in outcome.err, "whose config is gone"


@pytest.mark.slow
def test_the_laboratory_is_found_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = basic(tmp_path, Path("lab:specialist"), Path("lab:generalist"), Path("lab:words"))
    config = changed(config, "data.abilities.d.limit", 8)
    monkeypatch.chdir(tmp_path)
    card = published(tmp_path, config, "merge")
    outcome = call("replay", card, "--yes")
    assert outcome.status == 0, outcome.err
    assert "the same bits as recorded" in outcome.out


def test_another_seed_is_no_replay_and_says_what_differs(tmp_path: Path, config: Config) -> None:
    card = published(tmp_path, changed(config, "transfer.selection", "random"), "merge")
    shutil.copy(tmp_path / "run" / "merged" / "transfer.json", card.parent)
    record = record_of(card)
    card.write_text(card.read_text().replace(f'"torch": "{record["versions"]["torch"]}"', '"torch": "1.0"'))
    outcome = call("replay", card.parent, *replay_options(tmp_path), "--seed_everything", 7)
    assert outcome.status == 1
    assert "note: torch: 1.0 recorded" in outcome.err
    assert "differs from the record" in outcome.err
    assert "mask s: " in outcome.err


def test_a_file_that_the_record_lacks_is_a_difference() -> None:
    assert replay._differences({"a": "1", "c": "3"}, {"a": "1", "b": "2"}) == [
        "c: 3… recorded, nothing made",
        "b: nothing recorded, 2… made",
    ]


def test_other_inputs_are_refused_before_anything_is_done(tmp_path: Path, config: Config, ability_file: Path) -> None:
    card = published(tmp_path, config, "merge")
    weights = load_file(tmp_path / "models/source/model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, tmp_path / "models/source/model.safetensors")
    write_jsonl(ability_file, [{"prompt": "other", "answer": "rows"}])
    before = left(tmp_path)
    outcome = call("replay", card, *replay_options(tmp_path))
    assert outcome.status == 1
    assert "profile.sources.0.model = " in outcome.err
    assert "data.abilities.d = " in outcome.err
    assert "model.target = " not in outcome.err
    assert left(tmp_path) == before


def test_models_are_found_at_the_places_that_are_given(tmp_path: Path, config: Config) -> None:
    card = published(tmp_path, config, "merge")
    outcome = call("replay", card)
    assert outcome.status == 1
    assert "--model.target" in outcome.err
    (tmp_path / "models" / "source").rename(tmp_path / "moved")
    (tmp_path / "models" / "target").rename(tmp_path / "too")
    options = ["--profile.sources.0.model", tmp_path / "moved", f"--model.target={tmp_path / 'too'}"]
    outcome = call("replay", card, *options, *replay_options(tmp_path))
    assert outcome.status == 0, outcome.err


def test_a_card_is_written_again_with_results(tmp_path: Path, config: Config, target_folder: Path) -> None:
    (tmp_path / "models/target/README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "models/source/README.md").write_text("---\nlicense: llama2\n---\n")
    published(tmp_path, config, "merge")
    (tmp_path / "run/evaluations").mkdir(exist_ok=True)
    (tmp_path / "run/evaluations/gsm.json").write_text('{"exact": 0.25}')
    printed = call("card", tmp_path / "run", "--print")
    assert "| gsm |  | exact | 0.25 |" in printed.out
    assert call("card", tmp_path / "run").status == 0
    card = tmp_path / "run/merged/README.md"
    assert card.read_text() in printed.out
    assert record_of(card)["result"]["sha256"].keys() == {"model.safetensors"}
    assert "| target | mit |" in card.read_text()
    assert "| source | llama2 |" in card.read_text()
    assert ModelCard(card.read_text()).data.license is None
    assert call("card", tmp_path / "run/merged").status == 0, "an exported folder will do"
    assert call("card", tmp_path).status == 1


def test_cards_that_cannot_be_replayed(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    for text, words in (
        (None, "readable card"),
        ("# Someone else's", "must hold the record"),
        ('## Record\n\n```json\n{"verb": "test"}\n```\n', "recipe of a `fit` or `merge`"),
        (
            '## Recipe\n\n```yaml\nmodel: {}\ntrainer: {}\n```\n\n## Record\n\n```json\n{"verb": "fit"}\n```\n',
            "SHA-256 of the result's files",
        ),
    ):
        if text is not None:
            card.write_text(text)
        outcome = call("replay", card)
        assert (outcome.status, outcome.out) == (1, "")
        assert words in outcome.err
    assert "must be one card" in call("replay").err
    assert "must be one card" in call("replay", card, "--card", card).err


def test_a_model_trained_by_a_program_has_a_card_without_recipe(tmp_path: Path, target_folder: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(new_card(str(target_folder), "", {}, "fit"))
    assert record_of(card)["models"]["model.target"]["name"] == target_folder.name
    outcome = call("replay", tmp_path)
    assert outcome.status == 1
    assert "made again by the program" in outcome.err
