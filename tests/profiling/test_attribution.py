"""Attribution against autograd with whole gradients, against what the loss really does, and without a trace."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.channels import inventory
from act_lightning.masks import top_by_parameters
from act_lightning.scorers import Attribution
from act_lightning.transfer.settings import TransferSettings
from tests.front_door import basic, changed, run
from tests.loops import PlainModule, padded, quiet_trainer, random_samples
from tests.reference import act, attribution
from tests.reference.act import Sample, assert_same_bits
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer

SAMPLES, KEPT = random_samples(7), random_samples(5, seed=9)
KINDS = [("llama", True), ("qwen2", False), ("gpt2", True), ("gemma3_text", True)]


def fitted(
    scorer: Attribution, target: PreTrainedModel, source: PreTrainedModel, root: Path, samples: list[Sample] = SAMPLES
) -> torch.Tensor:
    """Scores of one ability, measured before a fit of a model in memory."""
    folder = save_model(source, tiny_tokenizer(), root / "source")
    loaders = {"d": padded(samples), **{name: padded(KEPT) for name in scorer.keep}}
    profiler = ActivationDifferenceProfiler([AbilitySource(str(folder), loaders, name="s")])
    trainer = quiet_trainer(root, profiler, MaskedTaskVectorInjection(selection=scorer, scale=0.0), max_steps=0)
    trainer.fit(PlainModule(target), padded(samples))
    return torch.tensor(act.saved_scores(root / "scores.attribution" / "s" / "d.safetensors", target))


def close(found: torch.Tensor, expected: list[float]) -> None:
    values = torch.tensor(expected)
    torch.testing.assert_close(found, values, rtol=1e-3, atol=1e-5 * float(values.abs().max()))


@pytest.mark.parametrize(("architecture", "tied"), KINDS)
def test_scores_equal_whole_gradients(architecture: str, tied: bool, tmp_path: Path) -> None:
    """And nothing of the model in memory is changed by measuring, nor by the λ of 0 that follows."""
    target = tiny_model(architecture, tie_word_embeddings=tied)
    source, before = sibling_of(target, seed=1), copy.deepcopy(target.state_dict())
    found = fitted(Attribution(), target, source, tmp_path)
    assert_same_bits(target.state_dict(), before)
    assert all(parameter.grad is None for parameter in target.parameters())
    close(found, attribution.scores(target, source, SAMPLES))


def test_several_alphas_and_what_is_to_be_kept(tmp_path: Path) -> None:
    target = tiny_model("llama")
    source = sibling_of(target, seed=1)
    scorer = Attribution(alpha=[0.0, 0.75], keep=["k"], penalty=2.0, tokens_per_batch=40)
    found = fitted(scorer, target, source, tmp_path)
    close(found, attribution.scores(target, source, SAMPLES, (0.0, 0.75), KEPT, 2.0))
    without = torch.tensor(attribution.scores(target, source, SAMPLES, (0.0, 0.75)))
    assert (found < without - 1e-9).any()
    assert (found <= without + 1e-6).all()


def test_a_second_round_ranks_what_the_first_has_not_moved(tmp_path: Path) -> None:
    target = tiny_model("llama")
    source, channels = sibling_of(target, seed=1), inventory(tiny_model("llama"))
    found = fitted(Attribution(rounds=2, first_share=0.05), target, source, tmp_path)
    first = torch.tensor(attribution.scores(target, source, SAMPLES))
    moved = top_by_parameters(first, 0.05, torch.ones(channels.total, dtype=torch.bool), channels)
    second = attribution.scores(target, source, SAMPLES, swapped=moved.nonzero().squeeze(1).tolist())
    close(found[~moved], torch.tensor(second)[~moved].tolist())
    assert found[moved].min() > found[~moved].max()
    assert found[moved].argsort().tolist() == first[moved].argsort().tolist()


def test_the_prediction_is_what_a_small_step_really_does(tmp_path: Path) -> None:
    """At α = 0, a channel that alone goes a hundredth of the way changes the mean loss by a hundredth of its score."""
    target = tiny_model("llama", tie_word_embeddings=True)
    source = sibling_of(target, seed=1)
    sizes = inventory(target).sizes()
    predicted = fitted(Attribution(alpha=0.0), target, source, tmp_path).double() * sizes
    exact: Any = copy.deepcopy(target).double()
    other = copy.deepcopy(source).double()
    for channel in [*predicted.abs().topk(6).indices.tolist(), 0, 40, 500]:
        losses = []
        for share in (0.01, -0.01):
            model = attribution.swapped_alone(exact, other, channel, share)
            with torch.no_grad():
                losses.append(exact_loss(model, SAMPLES))
        assert -(losses[0] - losses[1]) / 0.02 == pytest.approx(float(predicted[channel]), rel=0.01, abs=1e-6)


def exact_loss(model: Any, samples: list[Sample]) -> float:
    """The mean loss in float64."""
    terms = []
    for ids, labels in samples:
        logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        terms += [float(-logs[i - 1, labels[i]]) for i in range(1, len(ids)) if labels[i] != act.IGNORED]
    return sum(terms) / len(terms)


def test_bfloat16(tmp_path: Path) -> None:
    target = tiny_model("qwen2", dtype=torch.bfloat16)
    source = sibling_of(target, seed=1)
    found = fitted(Attribution(), target, source, tmp_path)
    expected = torch.tensor(attribution.scores(target, source, SAMPLES))
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.99


def test_through_the_command_line(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> None:
    """With data to keep; used again, unless what is kept or a setting changes; refused where it is not there."""
    config = basic(tmp_path, target_folder, source_folder, ability_file)
    config["data"]["abilities"]["k"] = {"path": str(ability_file), "limit": 5}
    chosen = {"class_path": "act_lightning.scorers.Attribution", "init_args": {"keep": ["k"], "penalty": 4}}
    config = changed(config, "transfer.selection", chosen)
    assert run("merge", config).status == 0
    path = tmp_path / "run" / "scores.attribution" / "s" / "d.safetensors"
    before = path.read_bytes()
    assert json.loads((tmp_path / "run" / "transfer.json").read_text())["selection"].startswith("Attribution(alpha=0.5")
    assert run("profile", changed(config, "transfer.selection.init_args.tokens_per_batch", 100)).status == 0
    assert path.read_bytes() == before
    for setting, value in (("transfer.selection.init_args.penalty", 1), ("data.abilities.k.limit", 4)):
        assert run("profile", changed(config, setting, value)).status == 0
        assert path.read_bytes() != before
        before = path.read_bytes()
    outcome = run("profile", changed(config, "transfer.selection.init_args.keep", ["unknown"]))
    assert outcome.status == 1
    assert "must be one of data.abilities: d, k" in outcome.err
    plan = run("plan", config, "--json")
    assert any("gradient of one parameter at a time" in one["message"] for one in json.loads(plan.out)["problems"])


def test_settings_can_be_looked_up_by() -> None:
    """A sweep keeps what it selected by the settings of the transfer."""
    kept = {TransferSettings(selection=Attribution(alpha=[0.5], keep=["k"])): 1}
    assert kept[TransferSettings(selection=Attribution(alpha=[0.5], keep=["k"]))] == 1
    assert TransferSettings(selection=Attribution(keep=["other"])) not in kept


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 1.5}, "must lie in [0, 1]"),
        ({"alpha": []}, "must lie in [0, 1]"),
        ({"penalty": float("nan")}, "must be at least 0"),
        ({"rounds": 3}, "must be 1 or 2"),
        ({"first_share": 0.0}, "must lie in (0, 1]"),
        ({"tokens_per_batch": 0}, "must be at least 1"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], words: str) -> None:
    (issue,) = TransferSettings(selection=Attribution(**settings)).issues()
    assert issue.problem == words
