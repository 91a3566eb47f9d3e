"""Patched and ablated channels: against wrapped modules, against what must hold, and as the verb writes them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from act_lightning.analysis.activation_patching import (
    PatchingExperiment,
    Variant,
    indices_by_module,
    position_sums,
    record_channels,
    replace_channels,
    token_losses,
)
from act_lightning.analysis.causal_check import effects, like_by_module, random_channels
from act_lightning.channels import inventory
from act_lightning.errors import ActError
from act_lightning.masks import top_channels
from tests.front_door import call, left
from tests.loops import padded, random_samples, write_config
from tests.model_types import tiny_type_config
from tests.reference.interventions import loss_with
from tests.tiny import sibling_of, tiny_model

FAMILIES = ("llama", "qwen3", "gpt2")
SAMPLES = random_samples(5, longest=12, shortest=5)
BATCH = padded(SAMPLES, rows=5)[0]


def _pair(architecture: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    target = tiny_model(architecture)
    return target, sibling_of(target, seed=1, scale=0.3)


def _mask(total: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return top_channels(torch.rand(total, generator=generator), 0.1, torch.ones(total, dtype=torch.bool))


def _losses(experiment: PatchingExperiment) -> dict[str, Tensor]:
    sums = position_sums(experiment.target, [BATCH], experiment.indices)
    return experiment.losses(BATCH, {name: total[0] / total[1] for name, total in sums.items()})


@pytest.mark.parametrize("architecture", FAMILIES)
def test_patched_losses_are_those_of_wrapped_modules(architecture: str) -> None:
    target, source = _pair(architecture)
    channels = inventory(target)
    mask = _mask(channels.total)
    found = _losses(PatchingExperiment(target, source, channels, [Variant("selected", mask)]))
    wanted = {name: numbers.tolist() for name, numbers in indices_by_module(channels, mask).items()}
    slow = [loss_with(target, sample, wanted, source) for sample in SAMPLES]
    torch.testing.assert_close(found["patch/selected"], torch.tensor(slow, dtype=torch.float64), rtol=0, atol=2e-5)
    bare = [loss_with(target, sample, {}, None) for sample in SAMPLES]
    torch.testing.assert_close(found["target"], torch.tensor(bare, dtype=torch.float64), rtol=0, atol=2e-5)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_with_every_channel_patched_the_target_is_the_source(architecture: str) -> None:
    target, source = _pair(architecture)
    channels = inventory(target)
    found = _losses(
        PatchingExperiment(target, source, channels, [Variant("all", torch.ones(channels.total, dtype=torch.bool))])
    )
    torch.testing.assert_close(found["patch/all"], found["source"], rtol=0, atol=1e-6)
    assert (found["source"] - found["target"]).abs().min() > 1e-3


def test_an_ablated_channel_gives_its_mean() -> None:
    """Of the final norm all channels: then every position predicts the same, the logits of the mean."""
    target, source = _pair("llama")
    channels = inventory(target)
    mask = torch.cat([torch.full((module.count,), module.name == "model.norm") for module in channels.modules])
    found = _losses(PatchingExperiment(target, source, channels, [Variant("norm", mask)]))
    outputs = []
    target.model.norm.register_forward_hook(lambda _, __, output: outputs.append(output[0].double()))
    for ids, _ in SAMPLES:
        target(input_ids=torch.tensor([ids]))
    mean = torch.cat(outputs).mean(0)
    logits = (target.lm_head.weight.double() @ mean).log_softmax(-1)
    wanted = [-logits[[label for label in labels[1:] if label >= 0]].mean() for _, labels in SAMPLES]
    torch.testing.assert_close(found["ablate/norm"], torch.stack(wanted), rtol=0, atol=1e-5)


def test_hooks_are_gone_whatever_happens() -> None:
    target, source = _pair("llama")
    channels = inventory(target)
    before = token_losses(target, BATCH)
    places = indices_by_module(channels, _mask(channels.total))
    with pytest.raises(RuntimeError, match="on purpose"), replace_channels(target, places, lambda *_: torch.zeros(1)):
        raise RuntimeError("on purpose")
    _losses(PatchingExperiment(target, source, channels, [Variant("selected", _mask(channels.total))]))
    assert torch.equal(token_losses(target, BATCH), before)
    assert not any(module._forward_hooks for module in (*target.modules(), *source.modules()))


def test_controls_are_as_many_and_drawn_anew_for_each_key() -> None:
    channels = inventory(tiny_model("llama"))
    mask = _mask(channels.total)
    drawn = random_channels(mask, 0, "a")
    assert drawn.sum() == mask.sum()
    assert torch.equal(drawn, random_channels(mask, 0, "a"))
    assert not torch.equal(drawn, random_channels(mask, 0, "b"))
    alike = like_by_module(mask, channels, 0, "a")
    assert {n: int(p.sum()) for n, p in channels.split(alike).items()} == {
        n: int(p.sum()) for n, p in channels.split(mask).items()
    }
    assert not (alike & mask).any()  # a tenth of each module leaves enough others


def test_controls_of_modules_that_are_taken_whole_are_their_own_channels() -> None:
    channels = inventory(tiny_model("llama"))
    mask = torch.cat([torch.full((module.count,), module.name == "lm_head") for module in channels.modules])
    assert torch.equal(like_by_module(mask, channels, 0), mask)


def test_effects_are_paired_means() -> None:
    losses = {"target": [2.0, 4.0, 3.0], "source": [1.0, 2.0, 3.0]}
    for kind in ("patch", "ablate"):
        losses |= {
            f"{kind}/selected": [1.5, 3.0, 3.0],
            f"{kind}/random 1": [2.0, 4.0, 3.5],
            f"{kind}/random 2": [2.0, 3.0, 2.5],
            f"{kind}/same modules 1": [2.0, 4.0, 3.0],
        }
    found = {
        (one.intervention, one.channels, one.against): one
        for one in effects({name: torch.tensor(values, dtype=torch.float64) for name, values in losses.items()})
    }
    selected = found["patch", "selected", "target"]
    assert selected.change == pytest.approx(-0.5)  # of −0.5, −1 and 0
    assert selected.size == pytest.approx(-1.0)  # their standard deviation is 0.5
    assert selected.gap == pytest.approx(0.5)  # the source is a nat better
    assert selected.low <= -0.5 <= selected.high
    assert found["patch", "random", "target"].change == pytest.approx(-1 / 6)  # of 0, −0.5 and 0
    assert found["patch", "selected", "random"].change == pytest.approx(-1 / 3)
    assert Counter(one.intervention for one in found.values()) == {"source": 1, "patch": 5, "ablate": 5}


def test_a_loss_that_is_nan_is_refused() -> None:
    with pytest.raises(ActError, match="loss of source"):
        effects({"target": torch.zeros(2), "source": torch.tensor([0.0, float("nan")])})


def _config(tmp_path: Path, target: Path, source: Path, data: Path, **causes: object) -> str:
    config = {
        "model": {"target": str(target)},
        "data": {"abilities": {"words": {"path": str(data), "limit": 12}}, "max_length": 64},
        "profile": {"sources": [{"model": str(source), "abilities": ["words"], "name": "sibling"}]},
        "transfer": {"ratio": 0.05},
        "causes": {"samples": 6, "repeats": 2, **causes},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(tmp_path / "run"), "logger": False},
    }
    return write_config(tmp_path / "causes.yaml", config)


def test_the_verb_writes_effects_of_held_out_samples(
    tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path
) -> None:
    assert call("causes", "--config", _config(tmp_path, target_folder, source_folder, ability_file)).status == 0
    found = json.loads((tmp_path / "run/causes/sibling/words.json").read_bytes())
    assert (found["samples"], found["repeats"], found["ratio"]) == (6, 2, 0.05)
    assert len(found["losses"]) == 2 + 2 * 5
    assert all(len(values) == 6 for values in found["losses"].values())
    patched = next(one for one in found["effects"] if (one["channels"], one["against"]) == ("selected", "target"))
    mean = sum(a - b for a, b in zip(found["losses"]["patch/selected"], found["losses"]["target"], strict=True)) / 6
    assert patched["change"] == pytest.approx(mean)


def test_an_ability_that_takes_all_rows_has_none_held_out(
    tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path
) -> None:
    config = _config(tmp_path, target_folder, source_folder, ability_file)
    told = call("causes", "--config", config, "--data.abilities.words.limit", "null")
    assert told.status == 1
    assert "causes.held_out" in told.err
    assert left(tmp_path / "run") == []


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss", "qwen3_next"])
def test_channels_of_experts_routers_and_convolutions(model_type: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_type_config(model_type), dtype=torch.float32).eval()
    found = inventory(model)
    ids = torch.randint(300, (2, 9))
    chosen = torch.rand(found.total, generator=torch.Generator().manual_seed(0)) < 0.3
    indices = indices_by_module(found, chosen)
    with torch.no_grad():
        plain = model(input_ids=ids, use_cache=False).logits
    with record_channels(model, indices) as recorded:
        model(input_ids=ids, use_cache=False)
    with replace_channels(model, indices, lambda name, call: recorded[name][call]):
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain)
    layer = "model.layers.1.mlp.experts"
    numbers = torch.arange(5, 90)  # of several experts
    with replace_channels(model, {f"{layer}.down_proj": numbers}, lambda *_: torch.zeros(1)):
        ablated = model(input_ids=ids, use_cache=False).logits
    mask = found.join({m.name: torch.zeros(m.count, dtype=torch.bool) for m in found.modules})
    for module, span in found.spans():
        if module.name == f"{layer}.down_proj":
            mask[span][numbers] = True
    with torch.no_grad():  # an expert's output is zero if its weights and its bias are
        for name, selection in found.elements(mask).items():
            parameter = model.get_parameter(name)
            parameter[selection.expand(parameter.shape)] = 0
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, ablated)
    assert not torch.allclose(ablated, plain)
