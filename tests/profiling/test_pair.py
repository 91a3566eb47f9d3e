"""Two models in lockstep against one sample, one position and one channel at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_lightning.channels import inventory
from act_lightning.data.batches import token_budget_batches
from act_lightning.errors import ActError
from act_lightning.profiling import channel_means
from act_lightning.profiling.channel_means import ChannelMeans, token_sums
from act_lightning.profiling.pair import ChunkBatch, ResidentPair
from act_lightning.scorers import Activation, Observation
from tests.loops import compare_on_batch, padded, random_samples
from tests.reference import act as reference
from tests.reference.act import IGNORED, Sample
from tests.tiny import ARCHITECTURES, sibling_of, tiny_model

TIED = [(architecture, tied) for architecture in ("llama", "gpt2", "gemma3_text") for tied in (True, False)]
HEADED = ("qwen3", "gemma3_text")  # norms inside each attention head: there are 4 of queries and 2 of keys


def measured(
    target: PreTrainedModel, sources: Sequence[PreTrainedModel], samples: Sequence[Sample], budget: int = 60
) -> list[Tensor]:
    """Scores of every source in padded batches of so many tokens."""
    found = inventory(target)
    metrics = [ChannelMeans(found, Activation()) for _ in sources]
    for numbers in token_budget_batches([len(ids) for ids, _ in samples], budget):
        (batch,) = padded([samples[number] for number in numbers], rows=len(numbers))
        compare_on_batch(target, sources, batch, metrics)
    return [metric.compute() for metric in metrics]


def check(target: PreTrainedModel, samples: Sequence[Sample], budget: int = 60) -> None:
    source = sibling_of(target, seed=1)
    (found,) = measured(target, [source], samples, budget)
    expected = reference.scores(target, source, samples)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-7)
    for ratio in ("0.01", "0.1", "0.5"):
        assert reference.chosen(found.tolist(), ratio) == reference.chosen(expected, ratio)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_the_reference(architecture: str) -> None:
    check(tiny_model(architecture), random_samples(10))


@pytest.mark.parametrize("tokens", [1, 2, 3, 7])
def test_blocks_of_tokens_add_up(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_means, "_CPU_BLOCK", 5 * tokens)
    target, source = torch.randn(7, 5), torch.randn(7, 5)
    expected = (target.double() - source.double()).abs().sum(0)
    torch.testing.assert_close(
        token_sums(Activation(), Observation("", target, source))[0], expected, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("architecture", "tied"), TIED)
def test_tied_and_untied(architecture: str, tied: bool) -> None:
    check(tiny_model(architecture, tie_word_embeddings=tied), random_samples(6, seed=1))


@pytest.mark.parametrize("architecture", HEADED)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_sequences_as_long_as_there_are_heads(architecture: str, length: int) -> None:
    check(tiny_model(architecture), random_samples(5, longest=length, shortest=length, seed=length))


def test_a_column_more_may_be_as_long_as_there_are_heads_again() -> None:
    target = tiny_model("gemma3_text", num_attention_heads=2, num_key_value_heads=1)
    check(target, random_samples(5, longest=1, shortest=1))


def test_a_budget_changes_nothing() -> None:
    target, samples = tiny_model("qwen3"), random_samples(10, seed=2)
    for budget in (1, 30, 100_000):
        check(target, samples, budget)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_padding_is_never_measured(architecture: str) -> None:
    target = tiny_model(architecture)
    source, samples = sibling_of(target, seed=1), random_samples(4, seed=3)
    found = []
    for extra, fill in ((0, 0), (9, 17), (30, 250)):
        (batch,) = padded([*samples, ([5] * (24 + extra), [IGNORED] * (24 + extra))], rows=5, fill=fill)
        metric = ChannelMeans(inventory(target), Activation())
        tokens = compare_on_batch(target, [source], batch, [metric])
        assert tokens == sum(label != IGNORED for _, labels in samples for label in labels)
        assert metric.count.unique().tolist() == [tokens]
        found.append(metric.compute())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-7)


def test_answer_tokens_only() -> None:
    target = tiny_model("llama")
    source = sibling_of(target, seed=1)
    ids, labels = [7, 8, 9, 10, 11, 12], [IGNORED, IGNORED, 9, 10, IGNORED, IGNORED]
    (first,) = measured(target, [source], [(ids, labels)])
    (after,) = measured(target, [source], [([7, 8, 9, 10, 200, 201], labels)])
    (before,) = measured(target, [source], [([100, 8, 9, 10, 11, 12], labels)])
    torch.testing.assert_close(after, first, rtol=1e-5, atol=1e-7)
    assert (before - first).abs().max() > 1e-3


def test_a_model_may_change_outputs_in_place_and_batches_may_shrink_and_grow() -> None:
    target = tiny_model("llama")
    source = sibling_of(target, seed=1)
    whole = [(ids, ids) for ids, _ in random_samples(6, seed=4)]  # every token is an answer
    expected = reference.scores(target, source, whole)
    found, place = ChannelMeans(inventory(target), Activation()), Path("source")
    for model in (target, source):
        for layer in model.model.layers:
            _spoil_when_used(layer.mlp.gate_proj, layer.mlp)
    readings = [ChunkBatch(batch) for sample in whole for batch in padded([sample], rows=1)]
    assert len({reading.batch["input_ids"].shape for reading in readings}) > 2
    pair = ResidentPair(target, {place: source})
    assert list(pair.run(iter(readings), [(place, found)])) == readings
    torch.testing.assert_close(found.compute(), torch.tensor(expected), rtol=1e-5, atol=1e-7)


def _spoil_when_used(module: nn.Module, user: nn.Module) -> None:
    """Let a model write over what a module gave, once it is done with it."""
    given: list[Tensor] = []

    def spoil(*_: object) -> None:
        given.pop().fill_(7.0)

    module.register_forward_hook(lambda _module, _args, output: given.append(output))
    user.register_forward_hook(spoil)


def test_a_batch_without_answers_runs_no_model() -> None:
    target = tiny_model("llama")
    runs = counted(target)
    metric = ChannelMeans(inventory(target), Activation())
    (batch,) = padded([([3, 4], [IGNORED, IGNORED])])
    assert compare_on_batch(target, [target], batch, [metric]) == 0
    assert not runs


def test_bfloat16() -> None:
    """Differences of rounded outputs are exact in float32; the head's matrix product has rows of its own here."""
    target = tiny_model("qwen2", dtype=torch.bfloat16)
    source = sibling_of(target, seed=1)
    samples = random_samples(6, seed=4)
    (found,) = measured(target, [source], samples, budget=1)
    expected = torch.tensor(reference.scores(target, source, samples))
    head = next(span for module, span in inventory(target).spans() if module.name == "lm_head")
    torch.testing.assert_close(found[: head.start], expected[: head.start], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[head], expected[head], rtol=1e-2, atol=1e-3)


def test_sources_share_one_run_of_the_target() -> None:
    target, samples = tiny_model("llama"), random_samples(9, seed=5)
    sources = [sibling_of(target, seed) for seed in (1, 2, 3)]
    runs, single = counted(target), [counted(source) for source in sources]
    together = measured(target, sources, samples)
    batches = len(token_budget_batches([len(ids) for ids, _ in samples], 60))
    assert len(runs) == batches
    assert [len(of_source) for of_source in single] == [batches] * 3
    for source, found in zip(sources, together, strict=True):
        assert torch.equal(found, measured(target, [source], samples)[0])


def counted(model: Any) -> list[int]:
    """A list that grows by one with every forward pass."""
    runs: list[int] = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def test_the_head_computes_logits_of_answer_tokens_only() -> None:
    target, samples = tiny_model("llama"), random_samples(4, seed=6)
    source = sibling_of(target, seed=1)
    seen: list[Tensor] = []
    target.lm_head.register_forward_hook(lambda _, __, output: seen.append(output))
    measured(target, [source], samples, budget=1000)
    tokens = sum(label != IGNORED for _, labels in samples for label in labels)
    assert [tuple(logits.shape) for logits in seen] == [(1, tokens, 300)]


@pytest.mark.parametrize("fails", ["target", "source"])
def test_hooks_are_gone_afterwards_and_after_an_error(fails: str) -> None:
    target = tiny_model("llama")
    source = sibling_of(target, seed=1)
    measured(target, [source], random_samples(2))
    assert not hooks(target) + hooks(source)
    broken = {"target": target, "source": source}[fails].model.layers[1]
    broken.forward = failing
    with pytest.raises(RuntimeError, match="in the middle"):
        measured(target, [source], random_samples(2))
    assert not hooks(target) + hooks(source)


def failing(*_: Any, **__: Any) -> None:
    raise RuntimeError("in the middle")


def hooks(model: nn.Module) -> list[Callable[..., Any]]:
    every = ((*module._forward_hooks.values(), *module._forward_pre_hooks.values()) for module in model.modules())
    return [hook for found in every for hook in found]


def test_a_module_without_output_is_an_error() -> None:
    target = tiny_model("llama")
    target.spare = nn.Linear(2, 3)
    with pytest.raises(ActError, match="'spare': every module with parameters must have an output"):
        measured(target, [sibling_of(target, seed=1)], random_samples(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mean_of_absolute_differences(dtype: torch.dtype) -> None:
    first, second = torch.randn(2, 5, 3, 4).to(dtype)
    expected = [
        sum(abs(float(first[t, h, i]) - float(second[t, h, i])) for t in range(5) for h in range(3)) / 15
        for i in range(4)
    ]
    found = token_sums(Activation(), Observation("", first, second))[0] / 15
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_long_sum_keeps_small_terms() -> None:
    """In float32, adding 0.001 to a million would leave it as it is."""
    metric = ChannelMeans(inventory(nn.Sequential(nn.Linear(1, 1))), Activation())
    metric.update("0", torch.tensor([[1e6]]), torch.zeros(1, 1))
    for _ in range(1000):
        metric.update("0", torch.full((1, 1), 1e-3), torch.zeros(1, 1))
    assert float(metric.total) == pytest.approx(1e6 + 1.0, abs=1e-6)
