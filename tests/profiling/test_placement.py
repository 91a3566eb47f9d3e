"""Placements through the callback: the same scores wherever the models are; little memory if on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler
from act_lightning.checkpoints.models import load_quantized
from act_lightning.errors import ActError
from act_lightning.profiling import placement
from act_lightning.profiling.memory import PLACEMENTS
from act_lightning.scorers import Attribution
from act_lightning.transfer.settings import TransferSettings
from tests.loops import PlainModule, messages, packed, padded, quiet_trainer, random_samples
from tests.programs import PROGRAMS
from tests.reference import act as reference
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer

DATA = {"padded": padded(random_samples(5)), "packed": packed(random_samples(5, seed=1), rows=3)}


def saved(model: PreTrainedModel, folder: Path) -> str:
    return str(save_model(model, tiny_tokenizer(), folder))


def profile(net: Any, source: str, root: Path, **settings: Any) -> dict[str, list[float]]:
    """The scores of every ability."""
    profiler = ActivationDifferenceProfiler([AbilitySource(source, dict(DATA), name="s")], 64, **settings)
    profiler.profile(quiet_trainer(root), PlainModule(net))
    return {name: reference.saved_scores(root / "scores" / "s" / f"{name}.safetensors", net) for name in DATA}


@pytest.mark.parametrize("placement", ["offload", "layerwise", "auto"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_every_placement_gives_the_same_scores(placement: str, in_memory: bool, tmp_path: Path) -> None:
    target = tiny_model("qwen2")
    folder, source = saved(target, tmp_path / "t"), saved(sibling_of(target, seed=1), tmp_path / "s")
    expected = profile(target, source, tmp_path / "resident", placement="resident")
    settings = {} if in_memory else {"target": folder}
    net = target.train() if in_memory else tiny_model("qwen2").to("meta")
    found = profile(net, source, tmp_path / "other", placement=placement, **settings)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-6, abs=1e-6)
        for ratio in ("0.01", "0.1"):
            assert reference.chosen(found[name], ratio) == reference.chosen(values, ratio)
    assert not in_memory or all(module.training for module in target.modules())


def test_auto_goes_by_the_memory_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_model("llama")
    source = saved(sibling_of(target, seed=1), tmp_path / "s")
    for room, chosen in ((10**9, "resident"), (10**5, "layerwise")):
        monkeypatch.setattr(placement, "host_memory", lambda room=room: room)
        with messages() as said:
            profile(target, source, tmp_path / chosen)
        assert [line.split(" (")[0] for line in said if "placement" in line] == [f"profile.placement: {chosen}"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"placement": "disk"}, "placement = 'disk': must be one of auto, resident, offload, layerwise"),
        ({"quantization": "2bit"}, "quantization = '2bit': must be null or one of 8bit, 4bit"),
        ({"quantization": "4bit", "placement": "layerwise"}, "must be null under placement layerwise"),
        ({"quantization": "8bit"}, "needs a GPU, and this run computes on cpu"),
        ({"quantization": "8bit"}, "needs a target that is loaded from its folder"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, str], problem: str, tmp_path: Path) -> None:
    target = tiny_model("llama")
    with pytest.raises(ActError) as error:
        profile(target, saved(target, tmp_path / "s"), tmp_path, **settings)
    assert problem in str(error.value)
    assert not (tmp_path / "scores" / "s").exists()


def test_quantization_needs_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    target = tiny_model("llama")
    with pytest.raises(ActError, match="needs the package accelerate"):
        profile(target, saved(target, tmp_path / "s"), tmp_path, quantization="4bit")


_TWICE = Attribution(alpha=0.3, keep=["packed"], rounds=2, first_share=0.02)


@pytest.mark.parametrize(
    ("architecture", "scorer"),
    [
        ("llama", _TWICE),
        ("gemma3_text", Attribution()),  # embedding and head are one matrix, and layers are not all alike
        ("gpt2", Attribution()),
        ("qwen3_moe", Attribution()),
    ],
)
def test_gradients_layer_by_layer_are_those_of_the_whole(
    architecture: str, scorer: Attribution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the host has room for the states of one batch at a time."""
    target = tiny_model(architecture)
    folder, source = saved(target, tmp_path / "t"), saved(sibling_of(target, seed=1), tmp_path / "s")
    settings = TransferSettings(selection=replace(scorer, tokens_per_batch=32))
    found = {}
    for chosen in ("resident", "layerwise", "layerwise, little memory"):
        if chosen not in PLACEMENTS:
            monkeypatch.setattr(placement, "host_memory", lambda: 1)
        root = tmp_path / chosen
        profiler = ActivationDifferenceProfiler(
            [AbilitySource(source, dict(DATA), name="s")], target=folder, placement=chosen.split(",")[0]
        )
        profiler.profile(quiet_trainer(root), PlainModule(tiny_model(architecture).to("meta")), settings=settings)
        (path,) = root.rglob("padded.safetensors")
        found[chosen] = torch.tensor(reference.saved_scores(path, target))
    expected = found.pop("resident")
    for scores in found.values():
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("placement", "problem"),
    [("offload", "must be resident or layerwise for attribution"), ("layerwise", "of a target that is in memory")],
)
def test_gradients_elsewhere_are_refused(placement: str, problem: str, tmp_path: Path) -> None:
    target = tiny_model("llama")
    source = AbilitySource(saved(sibling_of(target, seed=1), tmp_path / "s"), dict(DATA))
    profiler = ActivationDifferenceProfiler([source], placement=placement)
    settings = TransferSettings(selection=Attribution())
    with pytest.raises(ActError, match=problem):
        profiler.profile(quiet_trainer(tmp_path), PlainModule(target), settings=settings)
    assert not (tmp_path / "scores").exists()


def run(
    root: Path, placement: str, limit: int = 0, processes: int = 1, selection: str = "activation"
) -> subprocess.CompletedProcess[str]:
    alone = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    # Freed tensors go back at once, as those of large models always do: what malloc would keep varies by timing.
    alone["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    command = [sys.executable, PROGRAMS / "profile_placement.py", root, placement, limit, processes, selection]
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | alone,
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )


def scores(
    root: Path, placement: str, processes: int, model: PreTrainedModel, selection: str = "activation"
) -> list[float]:
    folder = "scores" if selection == "activation" else f"scores.{selection}"
    return reference.saved_scores(root / f"{placement}-{processes}" / folder / "s" / "a.safetensors", model)


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["activation", "attribution"])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_samples(processes: int, selection: str, tmp_path: Path) -> None:
    target = tiny_model("gemma3_text")
    saved(target, tmp_path / "target")
    saved(sibling_of(target, seed=1), tmp_path / "source")
    for chosen, count in (("resident", 1), ("layerwise", processes)):
        done = run(tmp_path, chosen, processes=count, selection=selection)
        assert done.returncode == 0, done.stderr
    expected = scores(tmp_path, "resident", 1, target, selection)
    found = scores(tmp_path, "layerwise", processes, target, selection)
    most = max(map(abs, expected)) if selection == "attribution" else 1.0
    assert found == pytest.approx(expected, rel=1e-6 if selection == "activation" else 1e-4, abs=1e-6 * most)
    assert reference.chosen(found, "0.1") == reference.chosen(expected, "0.1")


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["activation", "attribution"])
def test_a_pair_larger_than_the_memory_it_may_have(selection: str, tmp_path: Path) -> None:
    """Two models of 410 MB each under a limit of 734 MB on the data of the process, libraries included."""
    large = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 26, "head_dim": 128}
    target = tiny_model("llama", **large)
    saved(target, tmp_path / "target")
    saved(sibling_of(target, seed=1), tmp_path / "source")
    size = sum(file.stat().st_size for file in tmp_path.glob("*/*.safetensors"))
    limit = 700 * 2**20
    assert size > limit
    failed = run(tmp_path, "resident", limit, selection=selection)
    assert failed.returncode != 0
    assert "memory" in failed.stderr.lower()
    for chosen, most in (("layerwise", limit), ("resident", 0)):
        done = run(tmp_path, chosen, most, selection=selection)
        assert done.returncode == 0, done.stderr
    expected = scores(tmp_path, "resident", 1, target, selection)
    found = scores(tmp_path, "layerwise", 1, target, selection)
    tolerance = 1e-6 if selection == "activation" else 1e-4
    assert found == pytest.approx(expected, rel=tolerance, abs=1e-6 * max(map(abs, expected)))


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_models_give_something_else_but_near(quantization: str, tmp_path: Path) -> None:
    """On the CPU, where bitsandbytes computes slowly; a run of ours asks for a GPU."""
    model = tiny_model("llama", hidden_size=64, head_dim=16, intermediate_size=128)  # AVX-512: in blocks of 64
    folder = Path(saved(model, tmp_path / "m"))
    loaded: Any = load_quantized(folder, torch.float32, torch.device("cpu"), quantization)
    ids = torch.arange(20).view(1, 20)
    with torch.no_grad():
        exact, found = model.model(ids).last_hidden_state, loaded.model(ids).last_hidden_state
    assert type(loaded.model.layers[0].mlp.up_proj).__module__.startswith("bitsandbytes")
    assert 0 < (found - exact).norm() / exact.norm() < 0.5
