"""Fisher information: a sample's gradient squared before it is added, saved with its record, used again, bounded."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from act_lightning.callbacks import (
    AbilitySource,
    ActivationDifferenceProfiler,
    FisherInformation,
    MaskedTaskVectorInjection,
)
from act_lightning.checkpoints.weight_files import identify, identify_module
from act_lightning.data.batches import unbatch
from act_lightning.errors import ActError
from act_lightning.profiling.gradients import summed_squared_gradients
from act_lightning.transfer.saved_fisher import SavedFisher
from tests.loops import PlainModule, messages, padded, quiet_trainer, random_samples
from tests.reference.act import Sample
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer

SAMPLES = random_samples(5, shortest=3)
OTHERS = random_samples(3, seed=8, shortest=3)


def reference(model: PreTrainedModel, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Mean over samples of squared gradients, from transformers' own loss and autograd, one sample at a time."""
    model = copy.deepcopy(model).double()
    names = [name for name, _ in model.named_parameters()]
    total = {name: torch.zeros_like(values) for name, values in model.named_parameters()}
    for ids, labels in samples:
        targets = torch.tensor([labels])
        loss = model(input_ids=torch.tensor([ids]), labels=targets).loss * (targets[:, 1:] != -100).sum()
        for name, gradient in zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            total[name] += gradient**2
    return {name: values.detach() / len(samples) for name, values in total.items()}


def check(file: Path, model: PreTrainedModel, samples: Sequence[Sample]) -> None:
    information, expected = load_file(file), reference(model, samples)
    assert set(information) == set(expected)
    for name, values in expected.items():
        assert information[name].dtype == torch.float32
        torch.testing.assert_close(information[name].double(), values, rtol=1e-4, atol=float(values.max()) * 1e-5)


def saved(model: PreTrainedModel, folder: Path) -> str:
    return str(save_model(model, tiny_tokenizer(), folder))


def gathered(net: PreTrainedModel, root: Path, sources: list[AbilitySource]) -> list[str]:
    """A fit without any update; what was logged meanwhile."""
    with messages() as lines:
        quiet_trainer(root, FisherInformation(sources), max_steps=0).fit(PlainModule(net), padded(SAMPLES))
    return [line for line in lines if line.startswith("Fisher information of")]


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("gpt2", True), ("qwen2", False)])
def test_squares_of_each_samples_gradient(architecture: str, tied: bool) -> None:
    """A batch's gradient squared would be another thing; gradients and frozen parameters of the user's stay."""
    model = tiny_model(architecture, tie_word_embeddings=tied)
    first, second, *_ = model.parameters()
    first.grad, second.requires_grad = torch.ones_like(first), False
    samples = unbatch(padded(SAMPLES, rows=len(SAMPLES))[0])
    sums = summed_squared_gradients(model, samples)
    for name, values in reference(tiny_model(architecture, tie_word_embeddings=tied), SAMPLES).items():
        torch.testing.assert_close(sums[name].double() / 5, values, rtol=1e-4, atol=float(values.max()) * 1e-5)
    assert first.grad is not None
    assert (first.grad == 1).all()
    assert (second.grad, second.requires_grad) == (None, False)
    assert all(values.grad is None for values in list(model.parameters())[1:])


def test_files_of_every_model_and_ability(tmp_path: Path) -> None:
    """The target is measured once on samples that sources share; a second run gathers nothing."""
    target = tiny_model("llama", tie_word_embeddings=True)
    models = {name: sibling_of(target, seed) for seed, name in enumerate(("m", "n"), start=1)}
    folders = {name: saved(model, tmp_path / name) for name, model in models.items()}
    abilities = {"a": padded(SAMPLES, rows=2), "b": padded(OTHERS)}
    sources = [AbilitySource(folders["m"], abilities), AbilitySource(folders["n"], {"a": padded(SAMPLES, left=True)})]
    lines = gathered(target, tmp_path, sources)
    assert [line.endswith("gathering, no saved scores") for line in lines] == [True] * 5
    root, digest = tmp_path / "fisher", identify_module(target).digest
    for name, ability, samples in (("m", "a", SAMPLES), ("m", "b", OTHERS), ("n", "a", SAMPLES)):
        check(root / "sources" / name / f"{ability}.safetensors", models[name], samples)
    for file in (root / "target").iterdir():
        with safe_open(file, "pt") as opened:
            record = json.loads(opened.metadata()["act"])
            aliases = json.loads(opened.metadata()["aliases"])
        assert file.stem == record["data"][:16]
        assert {role: identity["digest"] for role, identity in record["identities"].items()} == {"target": digest}
        assert aliases == {"lm_head.weight": "model.embed_tokens.weight"}
        check(file, target, {5: SAMPLES, 3: OTHERS}[record["samples"]])
    assert len(list((root / "target").iterdir())) == 2
    assert all("used again" in line for line in gathered(target, tmp_path, sources))


def test_other_data_or_weights_are_gathered_anew(tmp_path: Path) -> None:
    target = tiny_model("llama")
    folder = saved(sibling_of(target, seed=1), tmp_path / "s")
    gathered(target, tmp_path, [AbilitySource(folder, {"a": padded(SAMPLES)})])
    lines = gathered(target, tmp_path, [AbilitySource(folder, {"a": padded(OTHERS)})])
    assert all("gathering, " in line for line in lines)
    saved(sibling_of(target, seed=2), tmp_path / "s")
    lines = gathered(target, tmp_path, [AbilitySource(folder, {"a": padded(OTHERS)})])
    assert "used again" in lines[0]
    assert "gathering, source was" in lines[1]
    record = load_record(tmp_path / "fisher" / "sources" / "s" / "a.safetensors")
    assert record["identities"]["source"]["digest"] == identify(tmp_path / "s").digest


def load_record(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        record: dict[str, Any] = json.loads(opened.metadata()["act"])
    return record


def test_a_loop_of_the_users_own_weighs_by_it(tmp_path: Path) -> None:
    """The transfer gathers by itself; the result is the average of the models, each weighted by its own information."""
    target = tiny_model("llama")
    source: Any = sibling_of(target, seed=1)
    net = copy.deepcopy(target)
    sources = [AbilitySource(saved(source, tmp_path / "s"), {"a": padded(SAMPLES), "b": padded(OTHERS)})]
    injection = MaskedTaskVectorInjection(selection="all", method="fisher", scale=1.0)
    trainer = quiet_trainer(tmp_path, ActivationDifferenceProfiler(sources), injection, max_steps=0)
    trainer.fit(PlainModule(net), padded(SAMPLES))
    target_fisher, source_fisher = reference(target, SAMPLES + OTHERS), reference(source, SAMPLES + OTHERS)
    for name, parameter in net.named_parameters():
        before, other = target.get_parameter(name).detach().double(), source.get_parameter(name).detach().double()
        total = target_fisher[name] + source_fisher[name]
        weighted = target_fisher[name] * before + source_fisher[name] * other
        expected = torch.where(total > 0, weighted / total.clamp(min=1e-300), before)
        sure = total > total.max() * 1e-6  # beside it, float32 gradients are noise
        torch.testing.assert_close(parameter.detach().double()[sure], expected[sure], rtol=1e-3, atol=1e-4)
    assert injection.record["method"] == "fisher"


def test_a_gradient_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    target = tiny_model("llama", dtype=torch.float16)
    with torch.no_grad():
        for values in target.parameters():
            values.mul_(60)  # finite, but not what is computed with it
    folder = saved(sibling_of(target, seed=1), tmp_path / "s")
    with pytest.raises(ActError, match=r"gradient of .* must be finite on target/a"):
        gathered(target, tmp_path, [AbilitySource(folder, {"a": padded(SAMPLES)})])
    assert not list((tmp_path / "fisher").rglob("*.safetensors"))


def test_rows_are_the_mean_over_files(tmp_path: Path) -> None:
    parts = {"a": torch.rand(6, 3), "b": torch.rand(6, 3)}
    for name, values in parts.items():
        save_file({"w": values}, tmp_path / name, {"aliases": json.dumps({"tied": "w"})})
    with SavedFisher({tmp_path / "a": 3, tmp_path / "b": 1}) as fisher:
        rows = fisher.rows("tied", torch.tensor([1, -1, 5]))
        with pytest.raises(ActError, match="must hold the Fisher information of other"):
            fisher.rows("other", torch.tensor([0]))
    expected = (parts["a"] * 3 + parts["b"]) / 4
    torch.testing.assert_close(rows, torch.stack([expected[1], torch.zeros(3), expected[5]]))


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no tensors")
    with (
        pytest.raises(ActError, match="must be a readable file of Fisher information"),
        SavedFisher({tmp_path / "a": 1}),
    ):
        pass
