"""A pair run a stage at a time gives the very scores of one that is in memory, in every architecture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from act_lightning.architecture import part_sizes
from act_lightning.channels import inventory
from act_lightning.checkpoints.models import load_model
from act_lightning.errors import ActError
from act_lightning.profiling.channel_means import ChannelMeans
from act_lightning.profiling.layerwise import LayerwiseModel, LayerwisePair
from act_lightning.profiling.offload import DiskWeights, MemoryWeights, OffloadedReader, PartWeights
from act_lightning.profiling.pair import ChunkBatch, Pair, ResidentPair
from act_lightning.scorers import Activation, ActivationScorer, Observation
from tests.loops import packed, padded, random_samples
from tests.memory import PeakMemory
from tests.tiny import each_architecture, save_model, sibling_of, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
MIXED: dict[str, dict[str, Any]] = {  # masks that differ from layer to layer, layers without rotary embeddings
    "gemma3_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 7,
    },
    "gemma4_text": {"layer_types": ["full_attention"] * 2},  # buffers that it saves
    "gemma2": {"num_hidden_layers": 4, "sliding_window": 7},
    "qwen2": {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "mistral": {"sliding_window": 7},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layer_interval": 2},
}
READINGS = [
    ChunkBatch(batch)
    for batch in (
        *padded(random_samples(3), rows=3),
        *packed(random_samples(3, seed=1), rows=3),
        *padded([([5, 6, 7, 8], [-100] * 4)]),
        *padded(random_samples(1, seed=2), rows=1),
    )
]


def scores(pair: Pair, places: Sequence[Path], target: PreTrainedModel) -> list[Tensor]:
    """The scores of every source."""
    means = [(place, ChannelMeans(inventory(target), Activation())) for place in places]
    assert len(list(pair.run(READINGS, means))) == len(READINGS)
    return [its.compute() for _, its in means]


@contextmanager
def staged(weights: Sequence[PartWeights], places: Sequence[Path], together: int = 10**6) -> Iterator[LayerwisePair]:
    with ExitStack() as stack:
        target, *sources = [stack.enter_context(LayerwiseModel(one, CPU)) for one in weights]
        yield LayerwisePair(target, dict(zip(places, sources, strict=True)), CPU, together)


def saved(models: Sequence[PreTrainedModel], root: Path) -> list[Path]:
    return [save_model(model, tiny_tokenizer(), root / str(number)) for number, model in enumerate(models)]


def aligned(model: PreTrainedModel) -> PreTrainedModel:
    """The same with weights in memory of their own: in a mapped file they start anywhere, and MKL rounds otherwise."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@pytest.mark.parametrize(("architecture", "tied"), [*each_architecture(True, False), ("gemma4_text", True)])
def test_scores_from_disk_are_those_in_memory(architecture: str, tied: bool, tmp_path: Path) -> None:
    dtype = torch.float32 if tied else torch.bfloat16
    target = tiny_model(architecture, dtype=dtype, tie_word_embeddings=tied, **MIXED.get(architecture, {}))
    folders = saved([target, sibling_of(target, seed=1)], tmp_path)
    resident, source = (aligned(load_model(folder, dtype)) for folder in folders)
    place = folders[1]
    (expected,) = scores(ResidentPair(resident, {place: source}), [place], target)
    weights = [DiskWeights(folder, dtype, CPU) for folder in folders]
    with staged(weights, [place]) as pair:
        (found,) = scores(pair, [place], target)
    assert torch.equal(found, expected)
    assert expected.min() > 0
    assert all(parameter.is_meta for one in weights for parameter in one.model.parameters())


@pytest.mark.parametrize("together", [1, 60])
def test_several_sources_in_memory_and_any_number_of_tokens_at_once(together: int) -> None:
    target = tiny_model("qwen3")
    sources = {Path(name): sibling_of(target, seed) for seed, name in enumerate(("a", "b"), start=1)}
    places = [*sources, Path("a")]
    expected = scores(ResidentPair(target, sources), places, target)
    before = {name: values.clone() for name, values in target.state_dict().items()}
    with staged([MemoryWeights(one, CPU) for one in (target, *sources.values())], [*sources], together) as pair:
        found = scores(pair, places, target)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert all(torch.equal(values, before[name]) for name, values in target.state_dict().items())
    assert not any("forward" in vars(module) for module in target.modules())


class Swapped(ActivationScorer):
    """What the source's weights change on the target's inputs; the source reads nothing."""

    needs_source = False
    needs_source_weights = True

    def values(self, observation: Observation) -> Tensor:
        assert observation.source_weight_output is not None
        return (observation.target - observation.source_weight_output).abs()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scorers_that_swap_weights(architecture: str, tmp_path: Path) -> None:
    target = tiny_model(architecture)
    folders = saved([target, sibling_of(target, seed=1)], tmp_path)
    found = []
    for kind in ("resident", "layerwise", "offload"):
        means = ChannelMeans(inventory(target), Swapped())
        with ExitStack() as stack:
            models = [aligned(load_model(folder, torch.float32)) for folder in folders]
            pair: Pair = ResidentPair(models[0], {folders[1]: models[1]})
            if kind == "layerwise":
                pair = stack.enter_context(
                    staged([DiskWeights(one, torch.float32, CPU) for one in folders], folders[1:])
                )
            if kind == "offload":
                readers = [stack.enter_context(OffloadedReader(model, CPU).ready()) for model in models]
                pair = ResidentPair(readers[0], {folders[1]: readers[1]}, CPU)
            list(pair.run(READINGS, [(folders[1], means)]))
        found.append(means.compute())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


class Counted(MemoryWeights):
    """Notes which parts are at hand together."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, CPU)
        self.at_hand: set[str] = set()
        self.seen: set[frozenset[str]] = set()

    def load(self, part: str) -> None:
        super().load(part)
        self.at_hand.add(part)
        self.seen.add(frozenset(self.at_hand))

    def unload(self, part: str) -> None:
        super().unload(part)
        self.at_hand.discard(part)


def test_one_stage_at_a_time() -> None:
    """A layer is never beside another, the embedding never beside the head."""
    target = tiny_model("gpt2", tie_word_embeddings=False)
    place, weights = Path("a"), [Counted(one) for one in (target, sibling_of(target, seed=1))]
    with staged(weights, [place]) as pair:
        scores(pair, [place], target)
    layers = {frozenset({f"transformer.h.{number}"}) for number in range(2)}
    outer = {frozenset(names) for names in (["transformer.wte"], ["transformer.wte", "transformer.wpe"])}
    outer |= {frozenset(names) for names in (["transformer.ln_f"], ["transformer.ln_f", "lm_head"])}
    assert weights[0].seen == weights[1].seen == layers | outer


def test_logits_are_forgotten_batch_by_batch() -> None:
    """Of what the last stage gives, nothing waits, however many batches go through the stages together."""
    target = tiny_model("llama", vocab_size=20_000)
    readings = [ChunkBatch(batch) for batch in padded(random_samples(16, longest=300), rows=1)]
    logits = 4 * 20_000 * max(reading.batch["input_ids"].numel() for reading in readings)
    with (
        PeakMemory() as counted,
        staged([MemoryWeights(model, CPU) for model in (target, sibling_of(target, 1))], [Path("s")]) as pair,
    ):
        list(pair.run(readings, [(Path("s"), ChannelMeans(inventory(target), Activation()))]))
    assert logits < counted.peak < 4 * logits, "the target's wait for the source's, and are subtracted"


def test_sizes_of_parts() -> None:
    model: Any = tiny_model("llama", tie_word_embeddings=True)
    sizes = part_sizes(model)
    assert sizes["model.layers.0"] == sum(one.numel() for one in model.model.layers[0].parameters())
    assert sizes["model.embed_tokens"] == sizes["lm_head"] == 300 * 32
    assert set(sizes) == {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"}


def refused(target: Any, source: Any) -> str:
    place = Path("a")
    weights = [MemoryWeights(one, CPU) for one in (target, source)]
    with pytest.raises(ActError) as error, staged(weights, [place]) as pair:
        scores(pair, [place], target)
    return str(error.value)


def test_layers_that_do_not_follow_one_another_are_refused() -> None:
    target: Any = tiny_model("llama", num_hidden_layers=3)
    source = sibling_of(target, seed=1)
    kept: list[Tensor] = []
    target.model.layers[0].register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    target.model.layers[2].register_forward_pre_hook(lambda _, given: (given[0] + kept[-1], *given[1:]))
    assert "model.layers.2 reads what was computed long before" in refused(target, source)
    twice = sibling_of(source, seed=2)
    twice.model.layers.append(twice.model.layers[0])
    twice.config.num_hidden_layers = 4
    assert "model.layers.0 is called out of turn" in refused(twice, source)


def test_a_model_without_known_layers_is_refused() -> None:
    target: Any = tiny_model("llama")
    target._no_split_modules = []
    with pytest.raises(ActError, match="must have decoder layers that transformers names"):
        LayerwiseModel(MemoryWeights(target, CPU), CPU)
