"""A card that a stranger wrote: it decides what is computed, and can neither run code nor reach files."""

from __future__ import annotations

import inspect
import io
import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

from act_lightning.callbacks import ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.cards.card import new_card, read_card
from act_lightning.cli.replay_settings import LEFT_OUT, TAKEN
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.module import AbilityTransferModule
from tests.front_door import basic, call, changed, left, write_yaml

Recipe = dict[str, Any]


@pytest.fixture
def recipe(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Recipe:
    return basic(tmp_path, target_folder, source_folder, ability_file)


def write_card(tmp_path: Path, recipe: Recipe, verb: str = "merge") -> Path:
    """A card of a stranger, complete with record and hashes of the true models."""
    recipe, record = read_text(new_card("target", yaml.safe_dump(recipe), {}, verb), tmp_path)
    record["result"] = {"digest": "0" * 64, "sha256": {"model.safetensors": "0" * 64}}
    return put_card(tmp_path, recipe, record)


def read_text(text: str, tmp_path: Path) -> tuple[Recipe, dict[str, Any]]:
    path = tmp_path / "made.md"
    path.write_text(text)
    content = read_card(path)
    path.unlink()
    return content


def put_card(tmp_path: Path, recipe: Recipe, record: dict[str, Any]) -> Path:
    card = tmp_path / "stranger" / "README.md"
    card.parent.mkdir(exist_ok=True)
    blocks = f"## Recipe\n\n```yaml\n{yaml.safe_dump(recipe)}```\n\n## Record\n\n```json\n{json.dumps(record)}\n```\n"
    card.write_text(blocks)
    return card


CODE = [
    ("trainer.callbacks", [{"class_path": "tests.cli.test_strangers_cards.Evil"}]),
    ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}]),
    ("trainer.callbacks", ["tests.cli.test_strangers_cards.Evil"]),
    ("trainer.callbacks", {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "evil"]}}),
    ("trainer.callbacks", [{"class_path": "act_lightning.cli.lightning_cli.SaveConfigLate"}]),
    ("trainer.callbacks", [{"class_path": "act_lightning.callbacks.LostUpdates", "dict_kwargs": {"a": 1}}]),
    ("trainer.callbacks", [{"class_path": "act_lightning.callbacks.BestRecovery", "init_args": {"keep_within": {}}}]),
    ("trainer.strategy", {"class_path": "lightning.pytorch.strategies.DDPStrategy"}),
    ("trainer.strategy", "tests.cli.test_strangers_cards.Evil"),
    ("trainer.strategy", "Evil"),
    ("trainer.accelerator", "tests.cli.test_strangers_cards.Evil"),
    ("trainer.plugins", [{"class_path": "lightning.pytorch.plugins.AsyncCheckpointIO"}]),
    ("trainer.surprise", 1),
    ("model.optimizer", {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "evil"]}}),
    ("model.optimizer", {"class_path": "torch.optim.lr_scheduler.Optimizer.register_step_pre_hook"}),
    ("model.optimizer", {"class_path": "torch.optim.optimizer.functools.partial"}),
    ("model.optimizer", {"class_path": "torch.optim.SGD", "init_args": {"lr": {"class_path": "os.system"}}}),
    ("model.lr_scheduler", {"class_path": "act_lightning.evaluation.sandbox.subprocess.Popen"}),
    ("model.compile", {"backend": "evil.backend"}),
    ("model.compile", {"options": {"trace.debug_dir": "/tmp/evil"}}),
    ("data", "evil.yaml"),
    ("transfer.method", {"class_path": "tests.cli.test_strangers_cards.Evil"}),
    ("transfer.method", "tests.cli.test_strangers_cards.Evil"),
    ("transfer.selection", {"class_path": "tests.cli.test_strangers_cards.Evil"}),
    ("data.abilities.d", "evil.yaml"),
    ("data.abilities.d", {"path": "ability.jsonl", "data_files": "/etc/passwd"}),
    ("data.evaluations", {"e": {"path": ["ability.jsonl"], "columns": {"a": {"class_path": "x"}}}}),
    ("profile.sources.0.abilities", {"d": {"class_path": "tests.cli.test_strangers_cards.Evil"}}),
    ("surprise", {"class_path": "tests.cli.test_strangers_cards.Evil"}),
]  # fmt: skip
PATHS = [
    ("data.abilities.d.path", "/etc/passwd.jsonl"),
    ("data.abilities.d.path", "../stranger.jsonl"),
    ("data.abilities.d.path", "~/x.jsonl"),
    ("data.abilities.d.path", "sub/../../x.jsonl"),
    ("data.abilities.d.path", "file:///etc/passwd.jsonl"),
    ("data.abilities.d.path", "link.jsonl"),
    ("data.abilities.d.path", "lin*.jsonl"),
    ("data.abilities.d.path", "act_lightning"),  # a folder here that looks like a hub id
    ("data.abilities.d.path", "lab:../words"),
    ("data.template", "/etc/template.jinja"),
    ("model.target", "../target"),
    ("model.target", "tests/cli"),
    ("model.target", "bin:/etc"),
    ("profile.sources.0.model", "C:\\models"),
    ("transfer.scores", "/tmp/scores"),
    ("model.revision", "../../../x"),
]


class Evil:
    """What must never be made."""

    made = False

    def __init__(self, **_: Any) -> None:
        type(self).made = True


def test_code_and_paths_of_strangers_are_refused(tmp_path: Path, recipe: Recipe, target_folder: Path) -> None:
    recipe, record = read_card(write_card(tmp_path, recipe))
    offered, outside = tmp_path / "offered", tmp_path / "outside.jsonl"
    offered.mkdir()
    outside.write_text('{"prompt": "a", "answer": "b"}\n')
    (offered / "link.jsonl").symlink_to(outside)
    own = {
        "model.target": target_folder,
        "profile.sources.0.model": target_folder,
        "data.abilities.d.path": tmp_path / "ability.jsonl",
    }
    before = left(tmp_path)
    for setting, value in (*CODE, *PATHS):
        card = put_card(tmp_path, changed(recipe, setting, value), record)
        options = [f"--{name}={path}" for name, path in own.items() if not name.startswith(setting)]
        outcome = call("replay", card, "--from", offered, "--out", tmp_path / "again", "--yes", *options)
        assert (outcome.status, outcome.out) == (1, ""), (setting, value, outcome)
        assert f"error: {'.'.join(setting.split('.')[:2])}" in outcome.err, (setting, value, outcome.err)
        assert left(tmp_path) == before, (setting, value)
    assert not Evil.made


def test_what_a_card_may_not_decide_is_left_out_and_all_is_written_below_out(
    tmp_path: Path, recipe: Recipe, target_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    code = {"path": "ability.jsonl", "role": "keep", "kind": "code", "allow_code_execution": True}
    last = {"class_path": "act_lightning.callbacks.LastCheckpoint", "init_args": {"dirpath": str(elsewhere)}}
    for setting, value in (
        ("trainer.logger", {"class_path": "CSVLogger", "init_args": {"save_dir": str(elsewhere)}}),
        ("trainer.profiler", {"class_path": "AdvancedProfiler", "init_args": {"dirpath": str(elsewhere)}}),
        ("trainer.callbacks", [last, "act_lightning.callbacks.LostUpdates"]),
        ("trainer.default_root_dir", str(elsewhere)),
        ("data.cache_dir", str(elsewhere)),
        ("data.evaluations", {"e": code}),
        ("ckpt_path", str(elsewhere)),
        ("weights_only", False),
        ("model.generator_args", {"download_dir": str(elsewhere)}),
    ):
        recipe = changed(recipe, setting, value)
    card = write_card(tmp_path, recipe, "fit")
    recipe, _ = read_card(card)
    monkeypatch.chdir(tmp_path)
    before = {path for path in left(tmp_path) if not path.startswith("again")}
    options = [f"--profile.sources.0.model={recipe_source(recipe, target_folder)}", "--out", "again", "--yes"]
    outcome = call("replay", card, "--from", target_folder.parent, "--from", tmp_path, *options)
    assert "differs from the record" in outcome.err, outcome
    assert (tmp_path / "again/model/config.json").is_file()
    assert {path for path in left(tmp_path) if not path.startswith("again")} == before
    assert not elsewhere.exists()
    for name in ("trainer.logger", "weights_only", "trainer.callbacks.0.dirpath", "data.evaluations.e"):
        assert name in outcome.out.split("Not taken from the card: ")[1]
    assert str(elsewhere) not in outcome.out


def recipe_source(recipe: Recipe, target: Path) -> Path:
    return target.parents[1] / "models1" / recipe["profile"]["sources"][0]["model"]


def test_it_shows_what_will_run_and_asks(
    tmp_path: Path, recipe: Recipe, target_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = write_card(tmp_path, changed(recipe, "data.abilities.d.filter", "prompt != \x1b]52;c;aGk=\x07"))
    options = ["--from", target_folder.parent, "--from", tmp_path, "--out", tmp_path / "again"]
    options += [f"--profile.sources.0.model={recipe_source(recipe, target_folder)}"]
    before = left(tmp_path)
    outcome = call("replay", card, *options)
    assert outcome.status == 1
    assert "error: --yes = False" in outcome.err
    assert f"below {tmp_path / 'again'}" in outcome.out
    assert "ratio: 0.1" in outcome.out
    assert "\x1b" not in outcome.out
    for answer in ("n\n", "\n", ""):
        monkeypatch.setattr(sys, "stdin", terminal(answer))
        outcome = call("replay", card, *options)
        assert (outcome.status, outcome.out.splitlines()[-1].endswith("nothing was run")) == (1, True)
    assert left(tmp_path) == before
    monkeypatch.setattr(sys, "stdin", terminal("yes\n"))
    outcome = call("replay", card, *options)
    assert "must have the recorded hash" not in outcome.err
    assert (tmp_path / "again/merged").is_dir(), outcome


def terminal(answer: str) -> io.StringIO:
    stream = io.StringIO(answer)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    return stream


def test_what_the_user_gives_is_not_taken_from_the_card(tmp_path: Path, recipe: Recipe, target_folder: Path) -> None:
    recipe = changed(recipe, "trainer.strategy", {"class_path": "evil.Strategy"})
    recipe = changed(recipe, "trainer.callbacks", [{"class_path": "evil.Callback"}])
    card = write_card(tmp_path, recipe)
    options = ["--from", target_folder.parent, "--from", tmp_path, "--out", tmp_path / "again", "--yes"]
    options += [f"--profile.sources.0.model={recipe_source(recipe, target_folder)}"]
    assert "trainer.callbacks" in call("replay", card, *options, "--trainer.strategy", "auto").err
    (tmp_path / "ability.jsonl").rename(tmp_path / "moved.jsonl")
    data = {"abilities": {"d": {"path": str(tmp_path / "moved.jsonl")}}}
    config = write_yaml(tmp_path / "own.yaml", {"trainer": {"callbacks": []}, "data": data})
    outcome = call("replay", card, *options, "--trainer.strategy=auto", "--config", config)
    assert (tmp_path / "again/merged").is_dir(), outcome
    assert "evil" not in outcome.out


def test_records_with_wrong_types_are_refused(tmp_path: Path, recipe: Recipe) -> None:
    recipe, record = read_card(write_card(tmp_path, recipe))
    for key, value in (
        ("versions", ["torch"]),
        ("models", {"model.target": "x"}),
        ("data", {"data.abilities.d": 1}),
        ("shortened", [1]),
        ("result", {"digest": 1, "sha256": {}}),
        ("result", {"digest": "0", "sha256": None}),
        ("verb", ["fit"]),
    ):
        path = put_card(tmp_path, recipe, {**record, key: value})
        outcome = call("replay", path, "--yes")
        assert (outcome.status, outcome.out) == (1, ""), (key, value)
        assert outcome.err.startswith("error: card = "), outcome.err


def test_every_setting_is_taken_or_left_out_on_purpose() -> None:
    """A new setting has to be put into one of the two lists."""
    classes = {
        "model": AbilityTransferModule,
        "data": AbilityDataModule,
        "profile": ActivationDifferenceProfiler,
        "transfer": MaskedTaskVectorInjection,
    }
    for section, cls in classes.items():
        settings = set(inspect.signature(cls.__init__).parameters) - {"self"}
        known = {*TAKEN[section], *LEFT_OUT.get(section, ())}
        assert settings == known, section
    trainer = {*TAKEN["trainer"], *LEFT_OUT["trainer"]}
    assert trainer <= set(inspect.signature(L.Trainer.__init__).parameters)
    assert not set(TAKEN["trainer"]) & set(LEFT_OUT["trainer"])
