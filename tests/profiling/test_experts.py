"""Packed experts, routers and convolutions: scores as a re-statement computes them token by token, expert by expert."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.channels import inventory
from act_lightning.profiling.channel_means import ChannelMeans, expert_sums, number_rows, sums_in_blocks
from act_lightning.profiling.outputs import ExpertOutput, Routing
from act_lightning.scorers import Activation, Local, RelativeActivation
from act_lightning.scorers.scorer import ActivationScorer, Observation
from act_lightning.scores import read_usage
from tests.loops import PlainModule, compare_on_batch, messages, packed, padded, quiet_trainer, random_samples
from tests.model_types import tiny_type_config
from tests.reference import act as reference
from tests.reference.channels import channels
from tests.reference.experts import inside
from tests.test_channels import multimodal_config
from tests.tiny import perturb, sibling_of

MODEL_TYPES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "laguna")
SAMPLES = random_samples(5, longest=14, seed=3)


def pair(model_type: str, **overrides: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A random model and a sibling that routes some tokens to other experts."""
    torch.manual_seed(0)
    config = tiny_type_config(model_type, **overrides)
    target = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    perturb(target, 0, 0.3)
    return target, sibling_of(target, seed=1, scale=0.1)


def measured(
    target: PreTrainedModel, source: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], scorer: ActivationScorer
) -> ChannelMeans:
    means = ChannelMeans(inventory(target), scorer)
    for batch in batches:
        compare_on_batch(target, [source], batch, [means])
    return means


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_scores_equal_the_restatement(model_type: str) -> None:
    target, source = pair(model_type)
    expected = torch.tensor(reference.scores(target, source, SAMPLES))
    means = measured(target, source, padded(SAMPLES), Activation())
    torch.testing.assert_close(means.compute(), expected, rtol=2e-4, atol=2e-5)
    usage = means.usage.view(3, -1, 4)
    tokens = sum(label != reference.IGNORED for _, labels in SAMPLES for label in labels)
    assert torch.equal(usage[:2].sum(2), torch.full_like(usage[:2, :, 0], 2 * tokens))
    assert bool((usage[2] >= usage[:2].amax(0)).all())
    assert bool((usage[2] <= usage[0] + usage[1]).all())
    assert not torch.equal(usage[0], usage[1])  # else the test would see no token that only one model routes


@pytest.mark.parametrize("model_type", ["zaya", "longcat_flash", "jetmoe"])
def test_scores_of_experts_that_are_passed_by_or_run_their_own_code(model_type: str) -> None:
    target, source = pair(model_type)
    for model in (target, source):
        for name, values in model.named_buffers():
            if name.endswith("balancing_biases"):
                values[-1] = 0.1  # so that Zaya skips the experts of some tokens
    expected: dict[str, Tensor] = {}
    for ids, labels in SAMPLES:
        found: list[dict[str, list[Tensor]]] = [{}, {}]
        for model, outputs in zip((target, source), found, strict=True):
            with torch.no_grad(), inside(model, outputs):
                model(input_ids=torch.tensor([ids]))
        for t, label in enumerate(labels):
            for name in found[0] if label != reference.IGNORED else ():
                difference = (found[0][name][t] - found[1][name][t]).abs().double()
                expected[name] = expected.get(name, torch.zeros(())) + difference[0]
    means = measured(target, source, padded(SAMPLES), Activation())
    scores, tokens = inventory(target).split(means.compute()), int(means.count.max())
    assert len(expected) >= 2
    for name, total in expected.items():
        torch.testing.assert_close(scores[name].double(), total / tokens, rtol=2e-4, atol=2e-5)
    used = means.usage[2, means.expert_spans[next(iter(expected))]]
    assert 0 < int(used.sum()) < 2 * 2 * tokens


def test_scores_of_a_multimodal_model_are_those_of_its_text() -> None:
    target = AutoModelForCausalLM.from_config(multimodal_config(), dtype=torch.float32).eval()
    source = sibling_of(target, seed=1)
    expected = torch.tensor(reference.scores(target, source, SAMPLES))
    means = measured(target, source, padded(SAMPLES), Activation())
    torch.testing.assert_close(means.compute(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v3"])
def test_packed_rows_give_the_same_scores(model_type: str) -> None:
    target, source = pair(model_type)
    one, other = (measured(target, source, form(SAMPLES), Activation()) for form in (padded, packed))
    torch.testing.assert_close(one.compute(), other.compute(), rtol=1e-4, atol=1e-6)
    assert torch.equal(one.usage, other.usage)


def test_sums_over_routed_tokens_are_divided_by_these() -> None:
    target, source = pair("qwen3_moe")
    over_all, over_routed = (
        measured(target, source, padded(SAMPLES), Activation(experts=experts)) for experts in ("all", "routed")
    )
    found, tokens = inventory(target), int(over_all.count[0])
    expected, scores = found.split(over_all.compute()), found.split(over_routed.compute())
    for module in found.modules:
        if module.experts:
            usage = over_all.usage[2, over_all.expert_spans[module.name]]
            factors = torch.where(usage > 0, tokens / usage, 0).repeat_interleave(module.count // module.experts)
            torch.testing.assert_close(scores[module.name], (expected[module.name] * factors).float())
        else:
            assert torch.equal(scores[module.name], expected[module.name])


def test_local_scores_of_experts_are_their_weights_on_the_targets_inputs() -> None:
    target, source = pair("gpt_oss")
    found, scores = inventory(target), measured(target, source, padded(SAMPLES), Local())
    by_module = found.split(scores.compute())
    expected = {name: torch.zeros(part.shape, dtype=torch.float64) for name, part in by_module.items()}
    tokens = 0
    for ids, labels in SAMPLES:
        answers = [t for t, label in enumerate(labels) if label != reference.IGNORED]
        tokens += len(answers)
        plain = reference.outputs(target, ids)
        for layer in target.model.layers:  # type: ignore[union-attr]
            experts, name = layer.mlp.experts, next(n for n, m in target.named_modules() if m is layer.mlp.experts)
            sibling = source.get_submodule(name)
            leaf = f"{name}.gate_up_proj"
            with torch.no_grad():
                swapped = {key: getattr(experts, key).data for key in ("gate_up_proj", "gate_up_proj_bias")}
                for key in swapped:
                    getattr(experts, key).data = getattr(sibling, key).data
                changed = reference.outputs(target, ids)  # its own input is not changed by what comes after
                for key, values in swapped.items():
                    getattr(experts, key).data = values
            for t in answers:
                expected[leaf] += (changed[leaf][t] - plain[leaf][t]).abs()[0]
    for name, values in expected.items():
        if name.endswith("gate_up_proj"):
            torch.testing.assert_close(by_module[name].double(), values / tokens, rtol=1e-3, atol=1e-5)


@dataclass(frozen=True)
class Overlapping(ActivationScorer):
    """1 where both activations are zero."""

    name: ClassVar[str] = "overlapping"

    def values(self, observation: Observation) -> Tensor:
        """Whether both are zero."""
        assert observation.source is not None
        return ((observation.target == 0) & (observation.source == 0)).float()


def test_a_scorer_may_give_two_zeros_a_value() -> None:
    target, source = pair("qwen3_moe")
    means = measured(target, source, padded(SAMPLES), Overlapping())
    found = inventory(target)
    for module, span in found.spans():
        if module.experts:
            usage = means.usage[2, means.expert_spans[module.name]]
            share = (1 - usage / means.count[0]).float().repeat_interleave(module.count // module.experts)
            torch.testing.assert_close(means.compute()[span], share)


def test_relative_scores_of_unused_experts_are_zero() -> None:
    target, source = pair("qwen3_moe")
    means = measured(target, source, padded(SAMPLES[:1]), RelativeActivation())
    scores = means.compute()
    assert bool(scores.isfinite().all())
    for module, span in inventory(target).spans():
        if module.experts:
            unused = means.usage[2, means.expert_spans[module.name]] == 0
            assert not scores[span].view(module.experts, -1)[unused].any()


@pytest.mark.parametrize("block", [None, 1, 8, 12, 1000])
@pytest.mark.parametrize("scorer", [Activation(), RelativeActivation(), Local()])
def test_sums_by_expert(scorer: ActivationScorer, block: int | None) -> None:
    """One expert at a time, and in blocks as on an accelerator, that cut experts or hold several."""
    torch.manual_seed(0)
    rows = torch.tensor([3, 0, 5, 1, 0])
    observation = Observation("", *torch.randn(3, 9, 4).unbind())
    if block is None:
        routing = Routing(torch.tensor([0, 4, 5, 1, 2, 3, 4, 6, 0]), torch.arange(5).repeat_interleave(rows), 7)
        roles = ("target", "source", "source_weight_output")
        outputs = {role: ExpertOutput(getattr(observation, role), routing) for role in roles}
        pairs, places = number_rows([*outputs.values()])
        assert torch.equal(pairs, routing.experts)
        sums = expert_sums(scorer, "", outputs, places, rows, len(pairs))
    else:
        sums = sums_in_blocks(scorer, observation, rows, block)
    values = scorer.values(observation).view(scorer.terms, 9, 4).double()
    expected = torch.stack([part.sum(1) for part in values.split(rows.tolist(), 1)], 1)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    target, source = pair("qwen3_moe")
    before = target.config._experts_implementation
    measured(target, source, padded(SAMPLES), Activation())
    assert target.config._experts_implementation == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in target.modules())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_channels_are_those_of_the_restatement(model_type: str) -> None:
    target, _ = pair(model_type)
    outputs = reference.outputs(target, SAMPLES[0][0])
    assert set(outputs) == {name for name, _, _ in channels(target)}


def test_usage_is_saved_and_a_mask_of_unreached_experts_warns(tmp_path: Path) -> None:
    target, source = pair("qwen3_moe", num_experts=64, num_local_experts=64)
    source.save_pretrained(tmp_path / "source", save_original_format=False)
    samples = SAMPLES[:1]
    sources = [AbilitySource(str(tmp_path / "source"), abilities={"a": padded(samples)}, name="s")]
    trainer = quiet_trainer(
        tmp_path, ActivationDifferenceProfiler(sources), MaskedTaskVectorInjection(ratio=1.0), max_steps=0
    )
    with messages() as said:
        trainer.fit(PlainModule(target), padded(samples))
    usage = read_usage(tmp_path / "scores" / "s" / "a.safetensors")
    tokens = sum(label != reference.IGNORED for _, labels in samples for label in labels)
    names = [f"model.layers.{layer}.mlp.experts" for layer in (0, 1)]
    assert list(usage) == names
    assert all(counts[:2].sum(1).tolist() == [2 * tokens, 2 * tokens] for counts in usage.values())
    unreached = {name: (counts[2] == 0).nonzero().flatten().tolist() for name, counts in usage.items()}
    assert all(unreached.values())
    first = f"{names[0]}: {', '.join(map(str, unreached[names[0]]))}"
    assert sum(first in text for text in said) == 2
    selects = f"warning: the mask of s/a selects channels of experts to which no answer token is routed: {first}"
    assert any(selects in text for text in said)
    report = json.loads((tmp_path / "transfer.json").read_text())
    assert report["sources"]["s"]["abilities"]["a"]["unreached_experts"] == unreached
    assert report["sources"]["s"]["by_module_type"]["experts.gate_up_proj"] > 0
