"""The verbs: what each one writes, and that what is written can be used again."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.front_door import Config, basic, call, changed, left, run, write_yaml
from tests.tiny import write_jsonl

MODEL_FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    return basic(tmp_path, target_folder, source_folder, ability_file)


@pytest.fixture
def evaluated(config: Config, tmp_path: Path) -> Config:
    """The config with two evaluation sets, of 5 and 3 rows."""
    sets = {}
    for name, role, count in (("kept", "keep", 5), ("lost", "recover", 3)):
        rows = [{"prompt": f"Say {number}", "answer": "four"} for number in range(count)]
        path = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        sets[name] = {"path": str(path), "role": role, "max_new_tokens": 3}
    return changed(config, "data.evaluations", sets)


def root_of(config: Config) -> Path:
    return Path(config["trainer"]["default_root_dir"])


def metrics(root: Path, version: int = 0) -> list[dict[str, str]]:
    with (root / "logs" / f"version_{version}" / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_fit_leaves_what_the_contract_names(config: Config) -> None:
    outcome = run("fit", changed(config, "data.validation", 0.25))
    assert (outcome.status, outcome.out) == (0, "")
    root = root_of(config)
    assert {path.name for path in root.iterdir()} == {"scores", "transfer.json", "model", "checkpoints", "logs"}
    assert MODEL_FILES | {"transfer.json"} <= {path.name for path in (root / "model").iterdir()}
    assert left(root / "scores") == ["s", "s/d.safetensors"]
    assert left(root / "checkpoints") == ["last.ckpt"]
    with safe_open(root / "scores" / "s" / "d.safetensors", "pt") as scores:
        assert {"tokens", "samples", "dropped", "models", "identities", "dtype", "versions"} <= set(
            json.loads(scores.metadata()["act"])
        )
        assert scores.get_tensor("lm_head").shape == (300,)
    report = json.loads((root / "transfer.json").read_text())
    keys = {"channels", "sources", "selection", "method", "include", "exclude", "seed", "hashes"}
    assert set(report) == {*keys, "rounding", "problems"}
    source = report["sources"]["s"]
    assert source["abilities"]["d"]["selected"] == source["union"] == report["channels"] // 10
    assert (report["seed"], source["scale"], source["ratio"]) == (42, 0.4, 0.1)
    updates = [row for row in metrics(root) if "train_loss" in row]
    assert len(updates) == 2, "18 samples are one epoch of two updates, and each is logged"
    assert [row for row in metrics(root) if "val_loss/d" in row]


def test_the_exported_model_is_a_plain_hugging_face_folder(config: Config) -> None:
    assert run("fit", config).status == 0
    folder, target = root_of(config) / "model", Path(config["model"]["target"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Say one"}]
    batch: Any = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
    assert torch.isfinite(model(**batch).logits).all()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (target / name).read_bytes()
    assert "ratio: 0.1" in (folder / "README.md").read_text(), "the card holds the recipe"


def test_a_saved_config_runs_again_and_gives_the_same_model(config: Config, tmp_path: Path) -> None:
    assert run("fit", config).status == 0
    saved = tmp_path / "saved.yaml"
    shutil.copy(root_of(config) / "logs" / "version_0" / "config.yaml", saved)
    first = load_file(root_of(config) / "model" / "model.safetensors")
    shutil.rmtree(root_of(config))
    assert call("fit", "--config", saved).status == 0
    second = load_file(root_of(config) / "model" / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    for verb in (("plan", "--overwrite"), ("merge",), ("profile",)):
        assert call(*verb, "--config", saved).status == 0, "every verb takes the same configs"
    refused = call("merge", "--config", saved, "--ckpt_path", saved)
    assert "ckpt_path" in refused.err


def test_without_sources_fit_is_plain_fine_tuning(config: Config) -> None:
    assert run("fit", changed(config, "profile.sources", None)).status == 0
    assert {path.name for path in root_of(config).iterdir()} == {"model", "checkpoints", "logs"}
    assert not (root_of(config) / "model" / "transfer.json").exists()


def test_profile_writes_scores_and_stops(config: Config) -> None:
    assert run("profile", config).status == 0
    assert left(root_of(config)) == ["scores", "scores/s", "scores/s/d.safetensors"]


def test_merge_profiles_only_where_scores_are_missing(config: Config) -> None:
    scores = root_of(config) / "scores" / "s" / "d.safetensors"
    assert run("profile", config).status == 0
    written = scores.stat().st_mtime_ns
    assert run("merge", config).status == 0
    assert scores.stat().st_mtime_ns == written
    assert {path.name for path in root_of(config).iterdir()} == {"scores", "transfer.json", "merged"}
    assert MODEL_FILES <= {path.name for path in (root_of(config) / "merged").iterdir()}
    shutil.rmtree(root_of(config))
    assert run("merge", config).status == 0
    assert scores.exists()


def test_merge_is_what_fit_starts_from(config: Config) -> None:
    assert run("merge", config).status == 0
    still = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    assert run("fit", changed(config, "model.optimizer", still)).status == 0
    merged, fitted = (load_file(root_of(config) / part / "model.safetensors") for part in ("merged", "model"))
    assert all(torch.equal(merged[name], fitted[name]) for name in merged)


def test_merge_with_saved_scores_reads_no_data(config: Config, tmp_path: Path) -> None:
    assert run("profile", changed(config, "trainer.default_root_dir", str(tmp_path / "elsewhere"))).status == 0
    config = changed(changed(config, "transfer.scores", str(tmp_path / "elsewhere" / "scores")), "data", ...)
    assert run("merge", config).status == 0
    assert {path.name for path in root_of(config).iterdir()} == {"transfer.json", "merged"}


def test_scores_are_measured_again_when_the_data_has_changed(config: Config) -> None:
    def record() -> dict[str, Any]:
        with safe_open(root_of(config) / "scores" / "s" / "d.safetensors", "pt") as scores:
            content: dict[str, Any] = json.loads(scores.metadata()["act"])
        return content

    assert run("profile", config).status == 0
    assert record()["samples"] == 24
    assert run("profile", changed(config, "data.abilities.d.limit", 10)).status == 0
    assert record()["samples"] == 10


def test_validate_logs_the_loss_of_every_set(config: Config) -> None:
    assert run("validate", changed(config, "data.validation", ["d"])).status == 0
    assert set(metrics(root_of(config))[0]) >= {"val_loss", "val_loss/d"}


def test_a_result_is_tested_by_its_folder(evaluated: Config) -> None:
    assert run("fit", evaluated).status == 0
    assert run("test", evaluated, "--model.target", root_of(evaluated) / "model").status == 0
    assert set(metrics(root_of(evaluated), version=1)[0]) >= {"exact_match/kept", "exact_match/lost", "keep", "recover"}


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_evaluation_needs_no_ability_and_none_of_their_files(evaluated: Config, verb: str) -> None:
    for missing in ({"data.abilities": ...}, {"data.abilities.d.path": "/gone.jsonl"}):
        ((path, value),) = missing.items()
        assert run(verb, changed(changed(evaluated, path, value), "profile", ...)).status == 0
    assert run(verb, changed(evaluated, "profile.sources.0.model", "/gone")).status == 0, "no source is looked at"


def test_predict_writes_every_answer(evaluated: Config) -> None:
    assert run("predict", evaluated).status == 0
    folder = root_of(evaluated) / "evaluations" / "predictions"
    assert left(folder) == ["kept.jsonl", "lost.jsonl", "model.json"]
    for name, count in (("kept", 5), ("lost", 3)):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert [row["reference"] for row in rows] == ["four"] * count
        assert {"prompt", "prediction"} < set(rows[0])
        assert {f"Say {number}" in row["prompt"] for number, row in enumerate(rows)} == {True}
    one_set = changed(evaluated, "data.evaluations.lost", ...)
    assert run("predict", one_set).status == 0
    assert len((folder / "kept.jsonl").read_text().splitlines()) == 5


def test_a_fit_that_resumes_neither_profiles_nor_transfers(config: Config, tmp_path: Path) -> None:
    assert run("fit", config).status == 0
    checkpoint = tmp_path / "kept.ckpt"
    shutil.copy(root_of(config) / "checkpoints" / "last.ckpt", checkpoint)
    before = json.loads((root_of(config) / "transfer.json").read_text())
    shutil.rmtree(root_of(config))
    gone = changed(config, "profile.sources.0.model", "/gone/since")
    outcome = run("fit", gone, "--ckpt_path", checkpoint, "--trainer.max_epochs", 2)
    assert outcome.status == 0, outcome.err
    assert not (root_of(config) / "scores").exists()
    assert json.loads((root_of(config) / "model" / "transfer.json").read_text()) == before


def test_a_trial_run_does_not_replace_a_model(config: Config) -> None:
    assert run("fit", config, "--trainer.fast_dev_run", "true").status == 0
    assert not (root_of(config) / "model").exists()


def test_settings_of_the_trainer_are_the_users(config: Config) -> None:
    own = {"logger": False, "enable_checkpointing": False, "max_steps": 1, "log_every_n_steps": 5}
    assert run("fit", changed(config, "trainer", config["trainer"] | own)).status == 0
    assert {path.name for path in root_of(config).iterdir()} == {"scores", "transfer.json", "model", "config.yaml"}


def test_a_callback_of_the_users_is_kept_and_ours_is_not_doubled(config: Config, tmp_path: Path) -> None:
    keeper = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "mine"), "save_last": True}}
    export = {"class_path": "act_lightning.callbacks.HuggingFaceExport", "init_args": {"dtype": "bfloat16"}}
    assert run("fit", changed(config, "trainer.callbacks", [keeper, export])).status == 0
    assert not (root_of(config) / "checkpoints").exists()
    assert (tmp_path / "mine" / "last.ckpt").is_file()
    weights = load_file(root_of(config) / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_print_config_shows_defaults_and_can_be_run(config: Config, tmp_path: Path) -> None:
    outcome = run("fit", config, "--print_config")
    shown = yaml.safe_load(outcome.out)
    assert set(shown) >= {"seed_everything", "model", "data", "profile", "transfer", "trainer"}
    held = {"placement": "auto", "quantization": None, "chunks": 0, "stop_when_stable": None}
    assert shown["profile"] == {"sources": shown["profile"]["sources"], "tokens_per_batch": 8192, **held}
    assert (shown["transfer"]["scope"], shown["model"]["optimizer"], shown["seed_everything"]) == ("global", "adam", 42)
    file = write_yaml(tmp_path / "again.yaml", shown)
    assert call("fit", "--config", file).status == 0


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in ("fit", "plan", "merge", "profile"))])
def test_help(arguments: list[str]) -> None:
    outcome = call(*arguments)
    assert outcome.status == 0
    assert outcome.out.startswith("usage: python -m act_lightning")
    assert ("--transfer.ratio" in outcome.out) == (arguments[0] in ("fit", "merge"))


def test_mistakes_of_form_end_with_status_two_and_a_short_message(config: Config) -> None:
    for outcome in (call("fly"), call(), run("fit", changed(config, "transfer.rato", 0.1)), call("fit")):
        assert outcome.status == 2
        assert "error: " in outcome.err
        assert len(outcome.err.splitlines()) < 12


def test_as_a_process_a_plan_is_one_json_object_and_an_error_has_no_traceback(config: Config, tmp_path: Path) -> None:
    config["trainer"]["precision"] = "bf16-true"  # a warning
    file = write_yaml(tmp_path / "config.yaml", config)

    def process(*arguments: str) -> subprocess.CompletedProcess[str]:
        verb, *options = arguments
        command = [sys.executable, "-m", "act_lightning", verb, "--config", str(file), *options]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=one_thread, check=False)

    plan = process("plan", "--json")
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["problems"][0]["level"] == "warning"
    refused = process("fit", "--transfer.ratio", "2")
    assert refused.returncode == 1
    assert refused.stdout == ""
    first, error = refused.stderr.splitlines()
    assert first.startswith("fit: importing PyTorch Lightning")
    assert error.startswith("error: transfer.ratio = 2.0: must lie in (0, 1]. ")


def test_the_front_page_waits_for_no_heavy_import() -> None:
    """By what is imported, not by the clock."""
    code = """
import sys
from act_lightning.cli import main
try:
    main(["--help"])
except SystemExit:
    sys.exit(bool({"torch", "lightning", "transformers", "datasets", "jsonargparse"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False).returncode == 0


def test_a_fit_says_what_it_does_without_advertisements(config: Config) -> None:
    text = io.StringIO()
    handler, logger = logging.StreamHandler(text), logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    try:
        outcome = run("fit", config)
    finally:
        logger.removeHandler(handler)
    assert outcome.status == 0, outcome.err
    assert "selected" in text.getvalue()
    for noise in ("litlogger", "Params", "Trainable params"):
        assert noise not in text.getvalue() + outcome.out
