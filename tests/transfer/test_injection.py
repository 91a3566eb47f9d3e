"""Injection into a model in memory: bit for bit what a slow re-statement merges, and what is read for it."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.errors import ActError
from act_lightning.merging import MergingMethod, TaskArithmetic, TaskVector, TensorSlice, merging_method
from act_lightning.transfer import injection
from act_lightning.transfer.injection import MaskedInjection
from act_lightning.transfer.selection import SelectedSource
from tests.loops import PlainModule, padded, quiet_trainer, random_samples
from tests.model_types import tiny_type_config
from tests.reference import act as reference
from tests.reference import masks
from tests.reference.act import Moving
from tests.reference.channels import channels, moved
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer

MODELS = [
    ("llama", False, torch.float32),
    ("llama", True, torch.float32),
    ("llama", True, torch.bfloat16),
    ("qwen2", False, torch.bfloat16),
    ("gpt2", True, torch.float32),
    ("gpt2", False, torch.bfloat16),
]
ABILITIES = {"a": padded(random_samples(5)), "b": padded(random_samples(4, seed=8))}


def saved(model: PreTrainedModel, folder: Path) -> str:
    return str(save_model(model, tiny_tokenizer(), folder))


def files(root: Path, *names: str) -> list[Path]:
    return [root / "scores" / f"{name}.safetensors" for name in names]


def fit(net: PreTrainedModel, root: Path, sources: list[AbilitySource], **settings: Any) -> dict[str, Any]:
    """A fit without any update; what it says of the transfer."""
    injecting = MaskedTaskVectorInjection(**settings)
    trainer = quiet_trainer(root, ActivationDifferenceProfiler(sources), injecting, max_steps=0)
    trainer.fit(PlainModule(net), ABILITIES["a"])
    report: dict[str, Any] = json.loads((root / "transfer.json").read_text())
    return report


def check_weights(net: PreTrainedModel, target: PreTrainedModel, moving: Sequence[Moving]) -> None:
    reference.assert_same_bits(dict(net.named_parameters()), reference.merged(target, moving))


@pytest.mark.parametrize(("architecture", "tied", "dtype"), MODELS)
def test_one_source(architecture: str, tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    target = tiny_model(architecture, dtype=dtype, tie_word_embeddings=tied)
    net, source = copy.deepcopy(target), sibling_of(target, seed=1)
    fit(net, tmp_path, [AbilitySource(saved(source, tmp_path / "s"), {**ABILITIES})], ratio=0.07, scale=0.4)
    chosen = reference.union_of(files(tmp_path, "s/a", "s/b"), target, "0.07")
    check_weights(net, target, [Moving(source, chosen, 0.4)])


@pytest.mark.parametrize(("architecture", "tied", "dtype"), MODELS)
def test_two_sources_with_settings_of_their_own(
    architecture: str, tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    """The report's counts too, by marking every element."""
    target = tiny_model(architecture, dtype=dtype, tie_word_embeddings=tied)
    net, first, second = copy.deepcopy(target), sibling_of(target, seed=1), sibling_of(target, seed=2)
    sources = [
        AbilitySource(saved(first, tmp_path / "m"), {"a": ABILITIES["a"]}, scale=0.7, ratio=0.29),
        AbilitySource(saved(second, tmp_path / "n"), {**ABILITIES}),
    ]
    report = fit(net, tmp_path, sources, ratio=0.1, scale=0.3)
    chosen = reference.union_of(files(tmp_path, "m/a"), target, "0.29")
    others = reference.union_of(files(tmp_path, "n/a", "n/b"), target, "0.1")
    check_weights(net, target, [Moving(first, chosen, 0.7), Moving(second, others, 0.3)])
    for name, numbers, ratio in (("m", chosen, "0.29"), ("n", others, "0.1")):
        check_counts(report, name, target, numbers, ratio)
    assert (report["sources"]["m"]["scale"], report["sources"]["n"]["scale"]) == (0.7, 0.3)


def test_a_source_that_computes_the_same_is_refused(tmp_path: Path) -> None:
    """Its files are laid out otherwise, so that nothing but the values tells."""
    target = tiny_model("llama")
    folder = str(save_model(target, tiny_tokenizer(), tmp_path / "s", max_shard_size="30KB"))
    for selection, problem in (("activation", "all scores in .* are zero"), ("all", "differ from the target in a sel")):
        with pytest.raises(ActError, match=problem):
            fit(copy.deepcopy(target), tmp_path, [AbilitySource(folder, {**ABILITIES})], selection=selection)
    assert not (tmp_path / "scores").exists()
    assert not (tmp_path / "transfer.json").exists()


def test_nothing_moves_at_a_scale_of_zero(tmp_path: Path) -> None:
    """Not even the sign of a zero that is selected."""
    target: Any = tiny_model("gpt2", dtype=torch.bfloat16)
    target.transformer.wte.weight.data[3:9, ::2] = -0.0
    net, source = copy.deepcopy(target), sibling_of(target, seed=1)
    fit(net, tmp_path, [AbilitySource(saved(source, tmp_path / "s"), {**ABILITIES})], selection="all", scale=0.0)
    reference.assert_same_bits(dict(net.named_parameters()), dict(target.named_parameters()))


@pytest.mark.parametrize("copies", [1, 3])
def test_what_rounding_keeps_is_counted_once(
    copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where several processes hold the same values."""
    target = tiny_model("llama", dtype=torch.bfloat16)
    net, source = copy.deepcopy(target), sibling_of(target, seed=1)
    monkeypatch.setattr(SingleDeviceStrategy, "reduce", lambda self, counts, **_: counts * copies)
    sources = [AbilitySource(saved(source, tmp_path / "s"), {**ABILITIES})]
    with caplog.at_level("INFO"):
        fit(net, tmp_path, sources, selection="all", scale=0.01)
    moved = unchanged = 0
    for name, before in target.named_parameters():
        moving = source.get_parameter(name) != before
        moved, unchanged = (
            moved + int(moving.sum()),
            unchanged + int((moving & (net.get_parameter(name) == before)).sum()),
        )
    assert f"warning: {unchanged:,} of {moved:,} selected values" in caplog.text


def test_a_source_stored_more_finely_than_the_target(tmp_path: Path) -> None:
    """Compared in the target's precision, but moved from all the bits that the source has."""
    target = tiny_model("llama", dtype=torch.bfloat16)
    source: Any = tiny_model("llama", seed=1)
    net = copy.deepcopy(target)
    fit(net, tmp_path, [AbilitySource(saved(source, tmp_path / "s"), {**ABILITIES})], ratio=0.3, scale=0.7)
    chosen = reference.union_of(files(tmp_path, "s/a", "s/b"), target, "0.3")
    check_weights(net, target, [Moving(source, chosen, 0.7)])
    coarse = reference.merged(target, [Moving(source.bfloat16(), chosen, 0.7)])
    assert any(not torch.equal(coarse[name], parameter) for name, parameter in net.named_parameters())


def check_counts(report: dict[str, Any], name: str, target: PreTrainedModel, chosen: set[int], ratio: str) -> None:
    all_channels, counts = channels(target), report["sources"][name]
    assert report["channels"] == len(all_channels)
    per_ability = masks.whole_part(len(all_channels), ratio)
    assert {ability["selected"] for ability in counts["abilities"].values()} == {per_ability}
    assert (counts["union"], counts["union_share"]) == (len(chosen), len(chosen) / len(all_channels))
    moved = reference.moved_count(target, chosen)
    assert (counts["parameters"], counts["parameter_share"]) == (moved, moved / target.num_parameters())
    types, layers = dict.fromkeys(counts["by_module_type"], 0), dict.fromkeys(counts["by_layer"], 0)
    for number in chosen:
        parts = all_channels[number][0].split(".")
        types[parts[-1]] += 1
        layers[next((part for part in parts if part.isdigit()), "none")] += 1
    assert (counts["by_module_type"], counts["by_layer"]) == (types, layers)


@dataclass
class Case:
    """A tied target whose every module takes part, a source, and scores that stand in a folder of another run."""

    target: PreTrainedModel
    source: PreTrainedModel
    sources: list[AbilitySource]
    scores: Path
    values: list[float]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("elsewhere")
    target = tiny_model("qwen2", tie_word_embeddings=True)
    source = sibling_of(target, seed=1)
    sources = [AbilitySource(saved(source, root / "s"), {"a": ABILITIES["a"]})]
    trainer = quiet_trainer(root, ActivationDifferenceProfiler(sources), max_steps=0)
    trainer.fit(PlainModule(target), ABILITIES["a"])
    values = reference.saved_scores(root / "scores" / "s" / "a.safetensors", target)
    return Case(target, source, sources, root / "scores", values)


def names_of(model: PreTrainedModel) -> list[str]:
    return [name for name, _, _ in channels(model)]


def expected_channels(case: Case, settings: dict[str, Any]) -> list[bool]:
    names = names_of(case.target)
    if settings.get("share") == "parameters":
        return masks.top_by_parameters(case.target, case.values, "0.2", [True] * len(names))[0]
    if settings.get("scope") == "module":
        return masks.top_per_module(case.values, "0.2", [True] * len(names), names)
    gone = ("embed_tokens", "_proj") if "exclude" in settings else ()
    if "include" in settings:
        kept = ("q_proj", "norm")
        return masks.top(case.values, "0.2", [name.endswith(kept) and ".0." not in name for name in names])
    return masks.top(case.values, "0.2", [not name.endswith(gone) for name in names])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"share": "parameters"},
        {"scope": "module"},
        {"exclude": ["*.embed_tokens", "*_proj"]},
        {"include": ["*.q_proj", "*norm"], "exclude": ["*.0.*"]},
    ],
)
def test_selections_by_scores_of_another_folder(case: Case, settings: dict[str, Any], tmp_path: Path) -> None:
    net = copy.deepcopy(case.target)
    report = fit(net, tmp_path, case.sources, ratio=0.2, scale=0.4, scores=str(case.scores), **settings)
    chosen = {number for number, moves in enumerate(expected_channels(case, settings)) if moves}
    check_weights(net, case.target, [Moving(case.source, chosen, 0.4)])
    assert report["sources"]["s"]["union"] == len(chosen)
    assert (report["include"], report["exclude"]) == (settings.get("include", ["*"]), settings.get("exclude", []))
    assert not (tmp_path / "scores").exists(), "nothing was measured"


def test_all_is_task_arithmetic(case: Case, tmp_path: Path) -> None:
    net = copy.deepcopy(case.target)
    report = fit(net, tmp_path, case.sources, selection="all", scale=0.4)
    source = dict(case.source.named_parameters())
    for (name, parameter), (_, before) in zip(net.named_parameters(), case.target.named_parameters(), strict=True):
        assert torch.equal(parameter, before + 0.4 * (source[name] - before)), name
    assert report["sources"]["s"]["parameter_share"] == 1
    assert report["sources"]["s"]["abilities"]["a"]["tokens"] == 0


def test_random_is_drawn_from_the_seed(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {}
    for root, seed in (("one", "5"), ("again", "5"), ("other", "6")):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        net = copy.deepcopy(case.target)
        report = fit(net, tmp_path / root, case.sources, selection="random", ratio=0.2)
        assert report["sources"]["s"]["union"] == masks.whole_part(len(case.values), "0.2")
        assert report["seed"] == int(seed)
        results[root] = (report["hashes"]["mask s"], net.state_dict())
    reference.assert_same_bits(results["again"][1], results["one"][1])
    assert results["one"][0] == results["again"][0] != results["other"][0]


def test_scores_of_another_model_in_memory_are_refused(case: Case, tmp_path: Path) -> None:
    net = sibling_of(case.target, seed=9)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ActError, match="must have been measured on the target of this run"):
        fit(net, tmp_path, case.sources, scores=str(case.scores))
    reference.assert_same_bits(net.state_dict(), before)


# The injection alone


@cache
def pair(tied: bool = False) -> tuple[PreTrainedModel, PreTrainedModel]:
    target = tiny_model("llama", tie_word_embeddings=tied)
    return target, sibling_of(target, seed=1)


def selected(channels: ChannelInventory, folder: str, *modules: str, every: int = 3) -> SelectedSource:
    """Every third channel of some modules, or of all."""
    mask = torch.zeros(channels.total, dtype=torch.bool)
    for module, span in channels.spans():
        mask[span] = (torch.arange(module.count) % every == 0) & (not modules or module.name in modules)
    return SelectedSource("s", folder, Path(folder), 0.4, 0.1, {"a": mask}, {"a": 1})


def applied(
    target: PreTrainedModel, source: SelectedSource, method: MergingMethod | None = None, cut: int | None = None
) -> dict[str, Tensor]:
    """All parameters that change, written in slices of ``cut`` rows."""
    values = {name: parameter.detach().clone() for name, parameter in target.named_parameters()}
    with MaskedInjection(inventory(target), [source], method or TaskArithmetic()) as injecting:
        for name in injecting.names:
            for first in range(0, len(values[name]), cut or len(values[name])):
                part = values[name][first : first + (cut or len(values[name]))]
                injecting.apply_(name, part, first)
    return values


def test_only_selected_rows_are_read(tmp_path: Path) -> None:
    target, source = pair()
    modules = {"model.layers.0.mlp.up_proj": (48, 32), "lm_head": (300, 32), "model.norm": (32, 1)}
    chosen = selected(inventory(target), saved(source, tmp_path / "s"), *modules)
    with MaskedInjection(inventory(target), [chosen], TaskArithmetic()) as injecting:
        for name in injecting.names:
            injecting.apply_(name, target.get_parameter(name).detach().clone())
        assert injecting.bytes_read == sum(-(-rows // 3) * width * 4 for rows, width in modules.values())
    assert injecting.names == ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cut", [1, 7, 32])
def test_slices_of_rows_are_as_the_whole(tied: bool, cut: int, tmp_path: Path) -> None:
    target, source = pair(tied)
    chosen = selected(inventory(target), saved(source, tmp_path / "s"))
    reference.assert_same_bits(applied(target, chosen, cut=cut), applied(target, chosen))


@pytest.mark.parametrize("tied", [True, False])
def test_chunks_are_as_the_whole(tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, source = pair(tied)
    chosen = selected(inventory(target), saved(source, tmp_path / "s"))
    whole = applied(target, chosen)
    monkeypatch.setattr(injection, "_CPU_CHUNK", 100)
    reference.assert_same_bits(applied(target, chosen), whole)


class Halving(MergingMethod):
    """Half of every task vector, and a record of its inputs."""

    def __init__(self) -> None:
        self.inputs: list[tuple[TensorSlice, torch.Size]] = []

    def merge(self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice) -> Tensor:
        (vector,) = vectors
        self.inputs.append((tensor_slice, vector.restricted().shape))
        return vector.restricted() * 0.5


def test_a_method_that_is_not_elementwise_gets_every_tensor_whole_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, source = pair()
    monkeypatch.setattr(injection, "_CPU_CHUNK", 100)
    chosen, method = selected(inventory(target), saved(source, tmp_path / "s"), "lm_head", "model.norm"), Halving()
    values = applied(target, chosen, method)
    shapes = {"model.norm.weight": torch.Size([32]), "lm_head.weight": torch.Size([300, 32])}
    assert method.inputs == [(TensorSlice(name), shape) for name, shape in shapes.items()]
    numbers = set(chosen.mask.nonzero().squeeze(1).tolist())
    reference.assert_same_bits(values, reference.merged(target, [Moving(source, numbers, 0.5)]))


def test_nan_is_found_in_the_rows_that_move(tmp_path: Path) -> None:
    target, source = pair()
    spoiled: Any = copy.deepcopy(source)
    spoiled.lm_head.weight.data[7, 1] = float("nan")
    folder = saved(spoiled, tmp_path / "s")
    applied(target, selected(inventory(target), folder, "lm_head"))  # row 7 stays where it is
    with pytest.raises(ActError, match="row 7 holds NaN"):
        applied(target, selected(inventory(target), folder, "lm_head", every=1))


def test_a_scale_that_overflows_is_an_error(tmp_path: Path) -> None:
    half = tiny_model("llama", dtype=torch.float16)
    chosen = selected(inventory(half), saved(sibling_of(half, seed=1), tmp_path / "s"))
    with pytest.raises(ActError, match="must be finite in the merged weights"):
        applied(half, SelectedSource("s", "s", chosen.folder, 1e9, 0.1, chosen.masks, chosen.tokens))


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss", "qwen3_next"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare"])
def test_experts_move_row_by_row(model_type: str, method: str, tmp_path: Path) -> None:
    target = AutoModelForCausalLM.from_config(tiny_type_config(model_type))
    source = sibling_of(target, seed=1)
    source.save_pretrained(tmp_path, save_original_format=False)
    found = inventory(target)
    mask = torch.rand(found.total, generator=torch.Generator().manual_seed(2)) < 0.1
    numbers = set(mask.nonzero().flatten().tolist())
    before = {name: values.clone() for name, values in target.named_parameters()}
    for whole in (frozenset[str](), frozenset(found.unowned)):
        expected = reference.merged(target, [Moving(source, numbers, 0.4)])
        chosen = SelectedSource("s", str(tmp_path), tmp_path, 0.4, 0.1, {"a": mask}, {"a": 1}, whole=whole)
        with MaskedInjection(found, [chosen], merging_method(method), 0, 0.4) as injection:
            for name in injection.names:
                injection.apply_(name, target.get_parameter(name).data)
        marks = moved(target, numbers)
        for name, values in target.named_parameters():
            moving = torch.ones_like(marks[name]) if name in whole else marks[name]
            assert torch.equal(values[~moving], before[name][~moving]), name
            if method == "task_arithmetic" and name not in whole:
                assert torch.equal(values, expected[name]), name
            if name in whole and method == "task_arithmetic":
                assert not torch.equal(values, before[name])
            values.data.copy_(before[name])
