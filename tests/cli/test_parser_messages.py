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
    f"{MODEL}data:\n  abilities:\n    a: {{path: b}}\n    c:\n      pth: d\n": ":6: data.abilities.pth: is no argument",
    f"{MODEL}trainer:\n  callbacks:\n  - class_path: lightning.pytorch.callbacks.EarlyStopping\n": (
        ":3: trainer.callbacks.monitor: is missing. Give it in init_args of lightning.pytorch.callbacks.EarlyStopping."
    ),
    "model: lab:base\n": ":1: model = 'lab:base': must hold settings by name.",
    "- model\n": ": must hold sections by name, such as model and data.",
}
OPTIONS = {
    ("--trainer.max_epoch", "3"): "--trainer.max_epoch: is no setting. Did you mean trainer.max_epochs?",
    ("--seed", "3"): "--seed: is no setting. Did you mean seed_everything?",
    ("--transfer.ratio", "abc"): "error: transfer.ratio = 'abc': must be a number.",
    ("--data.abilities", "3"): "error: data.abilities = 3: must be a mapping of names.",
    ("--config", "nothere.yaml"): "error: --config: File does not exist",
    ("--transfer.scope", "modules"): "transfer.scope = 'modules': must be one of global, module. Did you mean module?",
    ("--trainer.precision", "7"): "error: trainer.precision = '7': must be one of 64, 32, 16, transformer-engine,",
    ("--trainer.logger", "x"): "error: trainer.logger: must be of another type",
    ("more", "words"): "error: more: is no option.",
    ("--seed_everything", "1", "--transfer.ratio"): "error: --transfer.ratio: needs a value.",
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
def test_a_mistake_in_an_option(options: tuple[str, ...], tmp_path: Path) -> None:
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


def test_a_class_that_cannot_be_made(tmp_path: Path) -> None:
    """The message is the class's own, which may name a package to install."""
    logger = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: 's3://bucket/x'}}"
    path = tmp_path / "run.yaml"
    path.write_text(f"{MODEL}trainer:\n  default_root_dir: {tmp_path}/run\n  logger: {logger}\n", encoding="utf-8")
    outcome = call("profile", "--config", path)
    assert outcome.status == 2
    assert not [word for word in WORDS if word in outcome.err], outcome.err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("compares", "a", "b"), "Did you mean compare?"),
        (("report", "a", "--rato", "1"), "Did you mean --ratio?"),
        (("report", "a", "--abil", "x=y"), "Did you mean --ability?"),
        (("patch", "makes"), "Did you mean make?"),
        (("data", "inspct"), "Did you mean inspect?"),
        (("data", "translate"), "translate.languages: is missing."),
        (("dequantize", "--model", "x"), "--dtype, --out"),
    ],
)
def test_verbs_without_a_config(arguments: tuple[str, ...], hint: str) -> None:
    outcome = call(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert hint in outcome.err
    assert not [word for word in WORDS if word in outcome.err]
    assert "tip: python -m act_lightning" in outcome.err
