"""Folders are whole or absent, built once, and what the issue of them is: three siblings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from act_lightning.defaults import cache_folder
from act_lightning.errors import ActError
from act_lightning.evaluation.generation import generate_answers
from act_lightning.lab import models
from act_lightning.lab.models import MODELS, Recipe, cached_folder, model_folder, parse_name
from act_lightning.lab.training import Stage

MICRO = Recipe(
    vocabulary=270,
    hidden_size=16,
    layers=1,
    heads=2,
    base=Stage(2, 4, 1e-3, 0.5, whole_text=True),
    generalist=Stage(2, 4, 1e-3, 0.5),
    specialist=Stage(2, 4, 1e-3, 1.0),
)


@pytest.fixture(autouse=True)
def own_cache(fresh_cache: Path) -> Path:
    return fresh_cache / "laboratory" / MICRO.version


def test_three_siblings(own_cache: Path) -> None:
    weights = {}
    for name in MODELS:
        folder = model_folder(name, MICRO)
        assert folder == own_cache / name
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert (model.config.model_type, model.dtype) == ("qwen2", torch.float32)
        weights[name] = dict(model.named_parameters())
    shapes = [{key: value.shape for key, value in of_one.items()} for of_one in weights.values()]
    assert shapes[0] == shapes[1] == shapes[2]
    for one, other in [("base", "generalist"), ("base", "specialist"), ("generalist", "specialist")]:
        assert all(not torch.equal(weights[one][key], weights[other][key]) for key in weights[one])
    assert sorted(path.name for path in own_cache.iterdir()) == sorted(MODELS)
    assert sorted(path.name for path in own_cache.parent.iterdir()) == [MICRO.version, f"{MICRO.version}.lock"]


def test_folder_answers(caplog: pytest.LogCaptureFixture) -> None:
    folder = model_folder("generalist", MICRO)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": "12 + 35 ="}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert len(generate_answers(model, tokenizer, dict(prompt), 4)) == 1
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id
    assert not caplog.records


def test_built_once_and_without_touching_random_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    folder = model_folder("specialist", MICRO)
    assert torch.equal(torch.get_rng_state(), before)
    capsys.readouterr()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert model_folder("specialist", MICRO) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert capsys.readouterr().err == ""


def test_same_weights_from_the_same_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = (model_folder("specialist", MICRO) / "model.safetensors").read_bytes()
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "elsewhere"))
    assert (model_folder("specialist", MICRO) / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize("broken", ["base", "generalist"])
def test_a_build_that_fails_leaves_nothing(broken: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = models.build_model

    def break_off(name: str, recipe: Recipe, laboratory: Path) -> None:
        if name == broken:
            raise KeyboardInterrupt
        build(name, recipe, laboratory)

    with monkeypatch.context() as patch:
        patch.setattr(models, "build_model", break_off)
        with pytest.raises(KeyboardInterrupt):
            model_folder("base", MICRO)
    lock = f"{MICRO.version}.lock"
    assert [path.name for path in own_cache.parent.iterdir()] == [lock]
    (own_cache.parent / f"{MICRO.version}.unfinished-killed").mkdir()
    model_folder("base", MICRO)
    assert sorted(path.name for path in own_cache.parent.iterdir()) == [MICRO.version, lock]


def test_a_sibling_that_fails_beside_is_told(own_cache: Path) -> None:
    with pytest.raises(RuntimeError, match=r"training lab:specialist failed:[\s\S]*n_sample <= 0"):
        model_folder("base", replace(MICRO, specialist=Stage(2, -4, 1e-3, 1.0)))


def test_seeds_have_laboratories_of_their_own() -> None:
    name, recipe = parse_name("specialist@2")
    assert (name, recipe) == ("specialist", Recipe(seed=2))
    assert parse_name("specialist") == parse_name("specialist@0")
    assert cached_folder("base", recipe) != cached_folder("base", Recipe())


@pytest.mark.slow
def test_two_processes_build_once() -> None:
    code = "from tests.lab.test_models import MICRO, model_folder; print(model_folder('generalist', MICRO))"
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    (first, first_errors), (second, second_errors) = (one.communicate(timeout=120) for one in both)
    assert first == second == f"{model_folder('generalist', MICRO)}\n"
    assert ("Writing model shards" in first_errors) != ("Writing model shards" in second_errors)


@pytest.mark.parametrize("name", ["genius", "specialist@", "specialist@x", "specialist@-1", "../base", "base@1@2"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(ActError, match=r"lab:base, lab:generalist, lab:specialist.*lab:specialist@1"):
        model_folder(name)


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACT_LIGHTNING_CACHE", str(tmp_path / "file"))
    with pytest.raises(ActError, match=r"ACT_LIGHTNING_CACHE = .*file"):
        model_folder("base", MICRO)


def test_home_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACT_LIGHTNING_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder("laboratory") == Path("/home/someone/.cache/act_lightning/laboratory")
