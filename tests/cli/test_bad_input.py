"""A user's mistakes on the command line: a message with setting and hint, a status, and no files left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.normalizers import Lowercase

from tests.front_door import Config, Outcome, basic, changed, left, run
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

SOURCE = "profile.sources.0.model"
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    return basic(tmp_path, target_folder, source_folder, ability_file)


def refused(config: Config, *words: str, verb: str = "fit") -> Outcome:
    """The verb fails with one message that holds all ``words``, and leaves the run's folder as it was."""
    root = Path(config["trainer"]["default_root_dir"])
    before = left(root)
    outcome = run(verb, config)
    assert outcome.status == 1, outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
    assert left(root) == before
    assert root.exists() == bool(before) or root.is_file()
    assert not [name for name in left(root.parent) if ".tmp-" in name]
    return outcome


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("transfer.ratio", 0, "(0, 1]"),
        ("transfer.ratio", 1.5, "(0, 1]"),
        ("transfer.ratio", NAN, "(0, 1]"),
        ("transfer.ratio", 1.0e-6, "at least one of 940 channels"),
        ("transfer.scale", INFINITY, "finite number"),
        ("profile.sources.0.scale", NAN, "profile.sources[0].scale"),
        ("profile.sources.0.ratio", 2, "profile.sources[0].ratio"),
        ("profile.sources.0.name", "a/b", "[A-Za-z0-9._-]+"),
        ("profile.sources.0.name", "..", "[A-Za-z0-9._-]+"),
        ("profile.sources.0.abilities", ["unknown"], "must be one of data.abilities: d"),
        ("profile.sources.0.abilities", [], "must name an ability"),
        ("profile.sources.0.abilities", ["d", "d"], "twice"),
        ("profile.sources", [], "must not be empty"),
        ("profile.tokens_per_batch", 0, "at least 1"),
        ("transfer.exclude", ["nothing.*"], "must match at least one of the 21 modules"),
        ("transfer.exclude", ["*"], "must leave some channels"),
        ("transfer.include", ["model.*", "nothing.*"], "transfer.include = 'nothing.*': must match at least one"),
        ("transfer.include", [], "must leave some channels"),
        ("transfer.scale", 0, "must not be 0, which transfers nothing"),
        ("profile.sources.0.scale", 0.0, "profile.sources[0].scale = 0.0: must not be 0"),
        ("transfer.selection", "wait", "'wait': must be one of activation, activation_relative"),
        ("transfer.method", "averaging", "'averaging': must name a merging method"),
        ("transfer.scores", "nowhere", "Run `profile` first"),
        ("data.abilities", {"a/b": {"path": "x.jsonl"}}, "[A-Za-z0-9._-]+"),
        ("data.abilities", {"d": None}, "must hold an ability"),
        ("data.train", ["unknown"], "data.train"),
        ("data.validation", ["unknown"], "data.validation"),
        ("data.validation", 1.5, "must lie in (0, 1)"),
        ("data.batch_size", 0, "data.batch_size"),
        ("data.template", "no place", "{prompt}"),
        ("data.abilities.d.path", "nowhere.jsonl", "must be an existing file"),
        ("model.target", "nowhere/at/all", "must be a folder that exists"),
        ("model.dtype", "float8", "must be one of auto, float32"),
        ("model.learning_rate", -1, "must be a positive number"),
        ("model.optimizer", "sgd", "must be adam or adamw"),
        (SOURCE, "nowhere/at/all", "profile.sources[0].model"),
        ("trainer.strategy", "strange", "trainer = "),
        ("trainer.devices", "several", "trainer = "),
        ("seed_everything", -1, "seed_everything"),
    ],
)
def test_settings(config: Config, path: str, value: Any, words: str) -> None:
    refused(changed(config, path, value), words)


def test_all_faults_of_meaning_come_in_one_message(config: Config) -> None:
    for path, value in (
        ("transfer.ratio", 2),
        ("transfer.exclude", ["nothing"]),
        ("data.batch_size", 0),
        ("data.abilities.e", {"path": "nowhere.jsonl"}),
        ("model.learning_rate", 0),
        ("profile.sources.1", {"model": "gone/away", "abilities": ["f"], "name": "s"}),
    ):
        if path.endswith(".1"):
            config["profile"]["sources"].append(value)
        else:
            config = changed(config, path, value)
    settings = ("transfer.ratio", "transfer.exclude", "data.batch_size", "data.abilities.e.path", "model.learning_rate")
    sources = ("profile.sources[1].model", "profile.sources[1].abilities", "must not be the name of two sources")
    outcome = refused(config, *settings, *sources)
    assert len(outcome.err.strip().splitlines()) == len(settings) + len(sources)


@pytest.mark.parametrize("verb", ["profile", "merge"])
def test_verbs_that_compare_need_sources(config: Config, verb: str) -> None:
    refused(changed(config, "profile.sources", ...), f"when `{verb}` runs", verb=verb)


@pytest.mark.parametrize(("verb", "words"), [("test", "to test on"), ("predict", "to predict on"), ("validate", "to")])
def test_verbs_that_evaluate_need_a_set(config: Config, verb: str, words: str) -> None:
    refused(config, words, verb=verb)


Spoil = Callable[[Path], object]


def put_value(value: float) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][5, 7] = value
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return spoil


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-10])


def change_tokenizer(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(folder)


EITHER = pytest.mark.parametrize("path", ["model.target", SOURCE])


@EITHER
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (put_value(NAN), "model.layers.1.mlp.up_proj.weight"),
        (put_value(INFINITY), "row 5"),
        (truncate, "truncated"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "readable safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "must hold weights"),
        (lambda folder: (folder / "config.json").unlink(), "must hold a config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nothing known"}'), "nothing known"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (change_tokenizer, "must be encoded alike"),
        (lambda folder: save_model(tiny_model("qwen2"), tiny_tokenizer(), folder), "architecture"),
        (lambda folder: save_model(tiny_model(intermediate_size=64), tiny_tokenizer(), folder), "shapes"),
        (lambda folder: save_model(tiny_model(num_hidden_layers=3), tiny_tokenizer(), folder), "parameters"),
    ],
)
def test_models(config: Config, tmp_path: Path, path: str, spoil: Spoil, words: str) -> None:
    refused(spoiled(config, tmp_path, path, spoil), words)


@EITHER
@pytest.mark.parametrize(("spoil", "words"), [(put_value(NAN), "must be finite"), (truncate, "truncated")])
def test_models_of_a_merge(config: Config, tmp_path: Path, path: str, spoil: Spoil, words: str) -> None:
    refused(spoiled(config, tmp_path, path, spoil), words, verb="merge")


def spoiled(config: Config, tmp_path: Path, path: str, spoil: Spoil) -> Config:
    """The config with a damaged copy of the model that it names at ``path``."""
    original = config["model"]["target"] if path == "model.target" else config["profile"]["sources"][0]["model"]
    shutil.copytree(original, tmp_path / "spoiled")
    spoil(tmp_path / "spoiled")
    return changed(config, path, str(tmp_path / "spoiled"))


@pytest.mark.parametrize("verb", ["fit", "merge"])
def test_weights_that_are_first_read_in_the_transfer(config: Config, tmp_path: Path, verb: str) -> None:
    config = spoiled(config, tmp_path, SOURCE, put_value(NAN))
    refused(changed(config, "transfer.selection", "all"), "must be finite", verb=verb)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no rows"),
        (b"\n  \n", "holds no rows"),
        (b'{"prompt": "a", "answer": "b"}\n{"prompt": \n', "rows.jsonl:2"),
        (b'{"prompt": "a", "answer": "b"}\n["a", "b"]\n', "rows.jsonl:2"),
        (b'{"prompt": "a", "answer": "b"}\n\n{"prompt": "a"}\n', "rows.jsonl:3"),
        (b'{"prompt": "a", "answer": 5}\n', "rows.jsonl:1, answer"),
        (b'{"prompt": "\xff", "answer": "b"}\n', "rows.jsonl:1"),
        (b'{"prompt": "a", "answer": ""}\n' * 3, "all 3 are dropped: 3 with an empty or no answer"),
    ],
)
def test_data_files(config: Config, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    refused(changed(config, "data.abilities.d.path", str(tmp_path / "rows.jsonl")), words)


def test_answers_beyond_the_longest_sample(config: Config) -> None:
    refused(changed(config, "data.max_length", 4), "raise data.max_length")


def test_faults_of_several_data_files_come_together(config: Config, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one.jsonl", [])
    write_jsonl(tmp_path / "two.jsonl", [{"question": "a"}])
    abilities = {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("one", "two")}
    config["data"]["abilities"] |= abilities
    refused(config, "data.abilities.one.path", "two.jsonl:1")


def write_obstacle(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")


@pytest.mark.parametrize(
    ("verb", "part"),
    [
        ("fit", "."),
        ("fit", "scores"),
        ("fit", "model"),
        ("fit", "checkpoints"),
        ("fit", "logs"),
        ("fit", "model/notes.txt"),
        ("profile", "scores"),
        ("merge", "."),
        ("merge", "merged"),
        ("merge", "merged/notes.txt"),
    ],
)
def test_places_that_cannot_be_written(config: Config, verb: str, part: str) -> None:
    root = Path(config["trainer"]["default_root_dir"])
    write_obstacle(root / part)
    refused(
        config, f"trainer.default_root_dir = '{(root / part).parent if 'notes' in part else root / part}'", verb=verb
    )


def test_the_target_is_never_replaced(config: Config, target_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(target_folder, tmp_path / "run" / "model")
    refused(changed(config, "model.target", str(tmp_path / "run" / "model")), "must not be or hold the target")


def test_scores_of_other_weights(config: Config, tmp_path: Path) -> None:
    saved = tmp_path / "kept" / "scores"
    assert run("profile", changed(config, "trainer.default_root_dir", str(saved.parent))).status == 0
    config["transfer"]["scores"] = str(saved)
    save_model(sibling_of(tiny_model(), seed=7), tiny_tokenizer(), tmp_path / "other")
    for path, role in ((SOURCE, "source"), ("model.target", "target")):
        words = f"must have been measured on the {role} of this run"
        refused(changed(config, path, str(tmp_path / "other")), "transfer.scores", words)
    refused(changed(config, "profile.sources.0.name", "t"), "must hold t/d.safetensors")


def test_scores_that_are_damaged(config: Config, tmp_path: Path) -> None:
    saved = tmp_path / "kept" / "scores"
    assert run("profile", changed(config, "trainer.default_root_dir", str(saved.parent))).status == 0
    config["transfer"]["scores"] = str(saved)
    file = saved / "s" / "d.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    refused(config, "must be a readable score file")
    save_file({"lm_head": torch.zeros(3)}, file)
    refused(config, "must be a readable score file")
    file.write_bytes(content[:-4] + b"\x00\x00\xc0\x7f")  # the last score is NaN
    refused(config, "must have the SHA-256 that it states")


def test_a_checkpoint_that_is_not_there(config: Config) -> None:
    outcome = run("fit", config, "--ckpt_path", "nowhere.ckpt")
    assert outcome.status == 1
    assert "ckpt_path = 'nowhere.ckpt'" in outcome.err
