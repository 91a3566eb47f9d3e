"""Profiling before fit: scores as a slow re-statement has them, measured no oftener than needed, without a trace."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler
from act_lightning.checkpoints.reader import load_on_device
from act_lightning.checkpoints.weight_files import identify, identify_module
from act_lightning.errors import ActError
from act_lightning.profiling import placement
from tests.front_door import basic, left, run
from tests.loops import Batches, PlainModule, messages, packed, padded, quiet_trainer, random_samples
from tests.reference import act as reference
from tests.reference.act import IGNORED, Sample
from tests.reference.labels import label
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer

SAMPLES = random_samples(9)
OTHERS = random_samples(6, seed=8)
SILENT: Sample = ([7, 8, 9], [IGNORED] * 3)
MODELS = [("llama", True), ("llama", False), ("qwen2", False), ("gpt2", True)]
LOADERS = {
    "right": padded([*SAMPLES, SILENT]),
    "left": padded([*SAMPLES, SILENT], left=True, fill=9),
    "packed": packed([*SAMPLES, SILENT], rows=3),
}


def saved(model: PreTrainedModel, folder: Path) -> Path:
    return save_model(model, tiny_tokenizer(), folder)


def profiled(net: PreTrainedModel, root: Path, sources: list[AbilitySource], tokens: int = 64) -> list[str]:
    """A fit without any update; what was logged meanwhile."""
    trainer = quiet_trainer(root, ActivationDifferenceProfiler(sources, tokens_per_batch=tokens), max_steps=0)
    with messages() as lines:
        trainer.fit(PlainModule(net), padded(SAMPLES))
    return lines


def record_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        record: dict[str, Any] = json.loads(file.metadata()["act"])
    return record


def check_scores(path: Path, target: PreTrainedModel, source: PreTrainedModel, samples: list[Sample]) -> None:
    scores, expected = reference.saved_scores(path, target), reference.scores(target, source, samples)
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), rtol=1e-5, atol=1e-7)
    for ratio in ("0.01", "0.1", "0.5"):
        assert reference.chosen(scores, ratio) == reference.chosen(expected, ratio)


class Spy:
    """Counts forward passes, and checkpoints that the profiler loads."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.loads: Counter[str] = Counter()
        self.forwards: Counter[str] = Counter()
        self._load = load_on_device
        patch.setattr(placement, "load_on_device", self.load)

    def load(self, folder: Path, *arguments: Any) -> PreTrainedModel:
        self.loads[folder.name] += 1
        return self.watch(self._load(folder, *arguments), folder.name)

    def watch(self, model: PreTrainedModel, name: str) -> PreTrainedModel:
        model.register_forward_pre_hook(lambda *_: self.forwards.update([name]))
        return model

    def seen(self) -> tuple[dict[str, int], dict[str, int]]:
        """Loads and forwards since the last call."""
        found = dict(self.loads), dict(self.forwards)
        self.loads.clear()
        self.forwards.clear()
        return found


@pytest.fixture
def spy() -> Iterator[Spy]:
    with pytest.MonkeyPatch.context() as patch:
        yield Spy(patch)


@pytest.mark.parametrize(("architecture", "tied"), MODELS)
def test_saved_scores_equal_the_reference(architecture: str, tied: bool, tmp_path: Path) -> None:
    """However the user's loader pads or packs; a row without answer tokens is dropped and counted."""
    target = tiny_model(architecture, tie_word_embeddings=tied)
    source = sibling_of(target, seed=1)
    folder = saved(source, tmp_path / "other")
    profiled(target, tmp_path, [AbilitySource(str(folder), {**LOADERS}, name="s")])
    for name in LOADERS:
        path = tmp_path / "scores" / "s" / f"{name}.safetensors"
        check_scores(path, target, source, SAMPLES)
        record = record_of(path)
        assert (record["samples"], record["dropped"]) == (len(SAMPLES), 1)
        assert record["tokens"] == sum(value != IGNORED for _, labels in SAMPLES for value in labels)


def test_rows_of_a_file_through_the_command_line(
    tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path
) -> None:
    config = basic(tmp_path, target_folder, source_folder, ability_file)
    assert run("profile", config, "--profile.tokens_per_batch", 300).status == 0
    samples = []
    for line in ability_file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
        samples.append(label(turns, tiny_tokenizer(), 2048))
    target = tiny_model("llama")
    path = tmp_path / "run" / "scores" / "s" / "d.safetensors"
    check_scores(path, target, sibling_of(target, seed=1), samples)
    record = record_of(path)
    assert record["models"] == {"target": str(target_folder), "source": str(source_folder)}
    assert record["identities"]["target"]["digest"] == identify(target_folder).digest
    assert record["identities"]["source"]["digest"] == identify(source_folder).digest


def test_the_record(tmp_path: Path) -> None:
    target = tiny_model("llama", dtype=torch.bfloat16)
    folder = saved(sibling_of(target, seed=1), tmp_path / "other")
    profiled(target, tmp_path, [AbilitySource(str(folder), {"a": LOADERS["right"]})])
    record = record_of(tmp_path / "scores" / "other" / "a.safetensors")
    assert record["dtype"] == "bfloat16"
    assert record["models"]["source"] == str(folder)
    assert record["identities"]["target"]["digest"] == identify_module(target).digest
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["versions"]) == {"act_lightning", "torch", "transformers"}


def test_sources_that_share_an_ability_share_the_target(spy: Spy, tmp_path: Path) -> None:
    """Everything is loaded once; the target runs once a batch of an ability, for all who ask for it."""
    target = spy.watch(tiny_model("llama"), "target")
    models = {name: sibling_of(tiny_model("llama"), seed) for seed, name in enumerate(("m", "n"), start=1)}
    folders = {name: str(saved(model, tmp_path / name)) for name, model in models.items()}
    shared, own = padded(SAMPLES), padded(OTHERS)
    sources = [AbilitySource(folders["m"], {"a": shared, "b": own}), AbilitySource(folders["n"], {"a": shared})]
    profiled(target, tmp_path, sources, tokens=1)
    both = len(SAMPLES) + len(OTHERS)
    assert spy.seen() == ({"m": 1, "n": 1}, {"target": both, "m": both, "n": len(SAMPLES)})
    for name, ability, samples in (("m", "a", SAMPLES), ("m", "b", OTHERS), ("n", "a", SAMPLES)):
        check_scores(tmp_path / "scores" / name / f"{ability}.safetensors", tiny_model("llama"), models[name], samples)


def of(folder: Path, **loaders: Batches) -> list[AbilitySource]:
    return [AbilitySource(str(folder), dict(loaders), name="s")]


def test_a_second_run_runs_no_model(spy: Spy, source_folder: Path, tmp_path: Path) -> None:
    target = spy.watch(tiny_model("llama"), "target")
    assert any("s/a: measuring, no saved scores" in line for line in profiled(target, tmp_path, of_a(source_folder)))
    spy.seen()
    path = tmp_path / "scores" / "s" / "a.safetensors"
    before = path.read_bytes()
    (line,) = (line for line in profiled(target, tmp_path, of_a(source_folder)) if "s/a" in line)
    assert line == f"s/a: scores used again ({path}), by a quick check of the weights"
    profiled(target, tmp_path, of(source_folder, a=padded(SAMPLES, rows=2, left=True)), tokens=7)  # only batched anew
    assert spy.seen() == ({}, {})
    assert path.read_bytes() == before


def of_a(folder: Path) -> list[AbilitySource]:
    return of(folder, a=padded(SAMPLES))


@pytest.mark.parametrize("changed", ["data", "dtype", "source", "target", "file"])
def test_what_makes_scores_measured_again(changed: str, spy: Spy, source_folder: Path, tmp_path: Path) -> None:
    target, path = tiny_model("llama"), tmp_path / "scores" / "s" / "a.safetensors"
    profiled(target, tmp_path, of_a(source_folder))
    before = path.read_bytes()
    sources, words = of_a(source_folder), f"{changed} was "
    if changed == "data":
        sources = of(source_folder, a=padded(SAMPLES[:-1]))
    elif changed == "dtype":
        target = tiny_model("llama", dtype=torch.bfloat16)
    elif changed == "source":
        sources = of_a(saved(sibling_of(target, seed=2), tmp_path / "other"))
    elif changed == "target":
        target = sibling_of(target, seed=3)
    else:
        path.write_bytes(before[: len(before) // 2])
        words = "must be a readable score file"
    spy.seen()
    lines = [line for line in profiled(spy.watch(target, "target"), tmp_path, sources) if "s/a: measuring, " in line]
    assert len(lines) == 1
    assert words in lines[0]
    assert spy.seen()[1]["target"] > 0
    assert (path.read_bytes() == before) == (changed == "file")


def test_scores_of_another_precision_are_compared_before_they_are_replaced(
    target_folder: Path, source_folder: Path, ability_file: Path, tmp_path: Path
) -> None:
    """By the share of the old mask that the new one holds; not if anything else is new, too."""
    config, target = basic(tmp_path, target_folder, source_folder, ability_file), tiny_model("llama")
    config["transfer"]["ratio"] = 0.5
    path, masks = tmp_path / "run" / "scores" / "s" / "d.safetensors", []
    for precision in ("float32", "bfloat16"):
        with messages() as lines:
            assert run("profile", config, "--model.dtype", precision).status == 0
        masks.append(reference.chosen(reference.saved_scores(path, target), "0.5"))
    share = len(masks[0] & masks[1]) / len(masks[0])
    assert 0.5 < share < 1
    assert f"s/d: {share:.1%} of the mask in float32 is also selected in bfloat16" in lines
    with messages() as lines:
        assert run("profile", config, "--model.dtype", "float32", "--data.max_length", 40).status == 0
    assert not any("of the mask in" in line for line in lines)


def test_only_the_ability_that_changed_is_measured_again(spy: Spy, source_folder: Path, tmp_path: Path) -> None:
    target = spy.watch(tiny_model("llama"), "target")
    profiled(target, tmp_path, of(source_folder, a=padded(SAMPLES), b=padded(OTHERS)), tokens=1)
    spy.seen()
    written = (tmp_path / "scores" / "s" / "a.safetensors").stat().st_mtime_ns
    lines = profiled(target, tmp_path, of(source_folder, a=padded(SAMPLES), b=padded(OTHERS[:-2])), tokens=1)
    assert spy.seen()[1]["target"] == len(OTHERS) - 2
    assert (tmp_path / "scores" / "s" / "a.safetensors").stat().st_mtime_ns == written
    assert [line.split(":")[1][:12] for line in lines if line.startswith("s/")] == [" scores used", " measuring, "]


def test_nan_in_a_model_in_memory_is_named_and_nothing_is_written(source_folder: Path, tmp_path: Path) -> None:
    target: Any = tiny_model("llama")
    target.lm_head.weight.data[5, 3] = float("nan")
    with pytest.raises(ActError, match=r"scores of module 'lm_head' for ability 'a' must be finite"):
        profiled(target, tmp_path, of_a(source_folder))
    assert not [name for name in left(tmp_path) if name.endswith("safetensors")]


def test_nan_in_a_source_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    source: Any = sibling_of(tiny_model("llama"), seed=1)
    source.model.layers[1].mlp.up_proj.weight.data[4, 0] = float("inf")
    with pytest.raises(ActError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        profiled(tiny_model("llama"), tmp_path, of_a(saved(source, tmp_path / "other")))
    assert not (tmp_path / "scores").exists()


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that profiling could leave behind in a model of the user's."""
    every = list(model.modules())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in every]
    grads = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    return {"modes": [module.training for module in every], "hooks": hooks, "grads": grads}


class Restless:
    """A loader that draws random numbers, and may break in the middle."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        torch.rand(3)
        np.random.rand()
        random.random()
        yield from LOADERS["right"]
        if self.broken:
            raise RuntimeError("in the middle")


def next_draws() -> list[float]:
    """What torch, numpy and Python would draw next."""
    with isolate_rng():
        return [float(torch.rand(())), float(np.random.rand()), random.random()]


def fails(*_: Any) -> None:
    raise RuntimeError("in the middle")


@pytest.mark.parametrize("ends", ["well", "in the loader", "in the source", "in the target"])
def test_nothing_is_left_behind(ends: str, source_folder: Path, tmp_path: Path) -> None:
    target: Any = tiny_model("llama").train()
    target.model.layers[0].eval()
    target.model.norm.weight.requires_grad_(False)
    if ends == "in the target":
        target.model.layers[1].mlp.register_forward_hook(fails)
    profiler = ActivationDifferenceProfiler(
        [AbilitySource(str(source_folder), {"a": Restless(ends == "in the loader")})]
    )
    trainer, module = quiet_trainer(tmp_path), PlainModule(target)
    before, weights = state_of(target), copy.deepcopy(target.state_dict())
    drawn = next_draws()
    with pytest.MonkeyPatch.context() as patch:
        if ends == "in the source":
            patch.setattr(placement, "load_on_device", lambda *_: broken_source())
        if ends == "well":
            profiler.profile(trainer, module)
        else:
            with pytest.raises(RuntimeError, match="in the middle"):
                profiler.profile(trainer, module)
    assert next_draws() == drawn
    assert state_of(target) == before
    reference.assert_same_bits(target.state_dict(), weights)
    assert bool(list(tmp_path.rglob("*.safetensors"))) == (ends == "well")


def broken_source() -> PreTrainedModel:
    source: Any = tiny_model("llama")
    source.model.layers[1].mlp.register_forward_hook(fails)
    model: PreTrainedModel = source
    return model


def test_a_killed_run_continues_with_the_ability_it_lacks(spy: Spy, source_folder: Path, tmp_path: Path) -> None:
    """Scores stand on disk as soon as their ability is measured."""
    target = spy.watch(tiny_model("llama"), "target")
    profiled(target, tmp_path, of(source_folder, a=padded(SAMPLES), b=padded(OTHERS)), tokens=1)
    (tmp_path / "scores" / "s" / "b.safetensors").unlink()
    spy.seen()
    profiled(target, tmp_path, of(source_folder, a=padded(SAMPLES), b=padded(OTHERS)), tokens=1)
    assert spy.seen()[1]["target"] == len(OTHERS)


def test_a_copy_of_a_source_elsewhere_is_the_same_source(spy: Spy, source_folder: Path, tmp_path: Path) -> None:
    target = spy.watch(tiny_model("llama"), "target")
    profiled(target, tmp_path, of_a(source_folder))
    spy.seen()
    shutil.copytree(source_folder, tmp_path / "moved")
    profiled(target, tmp_path, of_a(tmp_path / "moved"))
    assert spy.seen() == ({}, {})
