"""What a user reads after a mistake in a config or an option: place, setting, problem and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.front_door import call

WORDS = ("Parser key", "Union", "Subtypes", "<class", "namespace", "Traceback", "usage:")
MODEL = "model: {target: lab:specialist}\n"
SCORER = "transfer:\n  selection:\n    class_path: act_lightning.scorers.Attribution\n    init_args: {alfa: 2}\n"
FILES = {
    "model:\n  target: lab:base\n  learning_rte: 1\n": ":3: model.learning_rte: is no setting. Did you mean model.lear",
    "model:\n  target: lab:base\n  learning_rate: fast\n": ":3: model.learning_rate = 'fast': must be a number.",
    f"{MODEL}trainer:\n  max_epoch: 3\n": ":3: trainer.max_epoch: is no setting. Did you mean trainer.max_epochs?",
    f"{MODEL}seed: 3\n": ":2: seed: is no setting. Did you mean seed_everything?",
    f"{MODEL}profile:\n  sources: {{model: a, abilities: [b]}}\n": ":3: profile.sources = ",
    MODEL
    + SCORER: ":5: transfer.selection.alfa: is no argument of act_lightning.scorers.Attribution. Did you mean alpha?",
    MODEL
    + SCORER.replace(
        "Attribution", "Attributing"
    ): "there is no Attributing in act_lightning.scorers. Did you mean Attribution?",
    f"{MODEL}data: {{abilities: [\ntrainer: {{}}\n": ": must be valid YAML (",
}
OPTIONS = {
    ("--trainer.max_epoch", "3"): "--trainer.max_epoch: is no setting. Did you mean trainer.max_epochs?",
    ("--seed", "3"): "--seed: is no setting. Did you mean seed_everything?",
    ("--transfer.ratio", "abc"): "error: transfer.ratio = 'abc': must be a number.",
    ("--data.abilities", "3"): "error: data.abilities = 3: must be a mapping of names.",
    ("--config", "nothere.yaml"): "error: --config: File does not exist",
}


@pytest.mark.parametrize("content", FILES)
def test_a_mistake_in_a_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="utf-8")
    outcome = call("plan", "--config", path)
    assert outcome.status == 2
    assert f"error: {path}:" in outcome.err, outcome.err
    assert FILES[content] in outcome.err
    assert not [word for word in WORDS if word in outcome.err]
    assert "tip: python -m act_lightning plan --help" in outcome.err


@pytest.mark.parametrize("options", OPTIONS)
def test_a_mistake_in_an_option(options: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"{MODEL}data: {{abilities: {{}}}}\n", encoding="utf-8")
    outcome = call("plan", "--config", path, *options)
    assert outcome.status == 2
    assert OPTIONS[options] in outcome.err
    assert not [word for word in WORDS if word in outcome.err]


def test_the_file_is_the_one_that_has_the_mistake(tmp_path: Path) -> None:
    for name, content in (("a", MODEL), ("b", "trainer:\n  max_epoch: 3\n"), ("c", "trainer:\n  devices: 1\n")):
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    configs = [text for name in "abc" for text in ("--config", tmp_path / f"{name}.yaml")]
    assert f"{tmp_path / 'b.yaml'}:2: trainer.max_epoch" in call("plan", *configs).err


def test_a_missing_config() -> None:
    assert "error: model.target: is missing. Give it in a file of --config" in call("plan").err
