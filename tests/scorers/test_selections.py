"""Selections past the paper's: scores against slow re-statements, where they are kept, and what they select."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.channels import inventory
from act_lightning.profiling.channel_means import ChannelMeans
from act_lightning.scorers import SCORERS, ActivationScorer, Local, RelativeActivation, Scorer
from act_lightning.transfer.selection import select
from act_lightning.transfer.settings import TransferSettings
from tests.front_door import Config, basic, changed, run
from tests.loops import PlainModule, compare_on_batch, padded, quiet_trainer, random_samples
from tests.reference import act as reference
from tests.reference import analysis, selections
from tests.reference.channels import channels, pieces
from tests.tiny import each_architecture, save_model, sibling_of, tiny_model, tiny_tokenizer

SAMPLES = random_samples(7)
EXPECTED = {"activation_relative": selections.relative, "local": selections.local}
MEASURED = sorted(name for name, kind in SCORERS.items() if not kind.saved_as and name != "activation")


def measured(scorer: ActivationScorer, target: PreTrainedModel, source: PreTrainedModel) -> torch.Tensor:
    means = ChannelMeans(inventory(target), scorer)
    for batch in padded(SAMPLES, rows=3):
        compare_on_batch(target, [source], batch, [means])
    return means.compute()


@pytest.mark.parametrize(("architecture", "scorer"), each_architecture(RelativeActivation(), Local()))
def test_scores_equal_the_reference(architecture: str, scorer: ActivationScorer) -> None:
    target = tiny_model(architecture)
    source = sibling_of(target, seed=1)
    expected = torch.tensor(EXPECTED[scorer.label](target, source, SAMPLES))
    torch.testing.assert_close(measured(scorer, target, source), expected, rtol=2e-4, atol=1e-6)


def test_local_keeps_the_settings_of_the_target() -> None:
    """A source whose norms have another ε and the same weights changes nothing, for weights are all that moves."""
    target = tiny_model("llama")
    source = tiny_model("llama", rms_norm_eps=0.5)
    assert not measured(Local(), target, source).any()
    assert measured(RelativeActivation(), target, source).any()


def test_local_runs_the_target_alone() -> None:
    target = tiny_model("llama")
    source = sibling_of(target, seed=1)
    source.register_forward_pre_hook(lambda *_: pytest.fail("the source was run"))
    assert measured(Local(), target, source).all()


def test_a_channel_that_the_target_never_uses() -> None:
    scorer = RelativeActivation()
    found = scorer.finish(torch.tensor([[0.0, 2.0, 3.0], [0.0, 0.0, 1.5]], dtype=torch.float64)).float()
    assert found[0] == 0
    assert found[2] == 2
    assert torch.isfinite(found).all()
    assert found.argmax() == 1


@pytest.fixture(params=[("qwen2", False), ("llama", True), ("gpt2", True)], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, PreTrainedModel, Path, Path]:
    """Two siblings, and their folders."""
    target = tiny_model(request.param[0], tie_word_embeddings=request.param[1])
    source = sibling_of(target, seed=3)
    return target, source, *(save_model(m, tiny_tokenizer(), tmp_path / n) for n, m in (("t", target), ("s", source)))


def written(root: Path, name: str, model: PreTrainedModel) -> list[float]:
    return reference.saved_scores(root / f"scores.{name}" / "s" / "d.safetensors", model)


def record(root: Path, name: str) -> dict[str, Any]:
    with safe_open(root / f"scores.{name}" / "s" / "d.safetensors", "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["act"])
    return found


@pytest.mark.parametrize("in_memory", [True, False])
def test_weights_are_read_without_a_forward_pass(pair: Any, in_memory: bool, tmp_path: Path) -> None:
    original, source, target_folder, source_folder = pair
    target = copy.deepcopy(original)
    expected = analysis.weight_change(target, source, channels(target))
    sizes = [sum(p[i].numel() for p, i in pieces(m, i)) for _, m, i in channels(target)]
    for name, values in (("weight", expected), ("weight_rms", selections.rms(expected, sizes))):
        if in_memory:
            loader = {"d": padded(SAMPLES)}
            profiler = ActivationDifferenceProfiler([AbilitySource(str(source_folder), loader, name="s")])
            trainer = quiet_trainer(tmp_path / "run", profiler, MaskedTaskVectorInjection(selection=name), max_steps=0)
            trainer.fit(PlainModule(target), padded(SAMPLES))
        else:
            config = basic(tmp_path, target_folder, source_folder, tmp_path / "nowhere.jsonl")
            outcome = run("profile", changed(config, "transfer.selection", name))
            assert outcome.status == 0, outcome.err
        assert written(tmp_path / "run", name, original) == pytest.approx(values, rel=1e-5)
        found = record(tmp_path / "run", name)
        assert (found["tokens"], found["scorer"]) == (0, {"name": name})
        target = copy.deepcopy(original)  # a model is transferred to once


def test_scores_over_their_modules_mean() -> None:
    model = tiny_model("llama")
    found, scores = inventory(model), torch.rand(inventory(model).total)
    values = SCORERS["activation_module_mean"]().ranked(scores, found)
    torch.testing.assert_close(values, torch.tensor(selections.over_module_mean(scores.tolist(), model)))
    assert not SCORERS["activation_module_mean"]().ranked(torch.zeros(found.total), found).any()


@pytest.mark.parametrize("options", [{}, {"share": "parameters"}, {"scope": "module"}, {"exclude": ("lm_head",)}])
def test_module_means_rank_as_any_scores_do(options: Mapping[str, Any]) -> None:
    found = inventory(tiny_model("llama"))
    scores = torch.rand(found.total)
    ranked = SCORERS["activation_module_mean"]().ranked(scores, found)
    (derived,) = select(
        found, {"a": scores}, 0.1, TransferSettings(selection="activation_module_mean", **options), ()
    ).values()
    (direct,) = select(found, {"a": ranked}, 0.1, TransferSettings(**options), ()).values()
    assert torch.equal(derived, direct)


@pytest.fixture
def config(tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path) -> Config:
    return changed(basic(tmp_path, target_folder, source_folder, ability_file), "transfer.ratio", 0.05)


@pytest.mark.parametrize("name", MEASURED)
def test_a_selection_from_the_front_door(name: str, config: Config, tmp_path: Path) -> None:
    """Measured where it belongs, used again, found by the quick way, and moving what ranks first."""
    config = changed(config, "transfer.selection", name)
    assert run("merge", config).status == 0
    root = tmp_path / "run"
    assert not (root / "scores").exists()
    model, path = tiny_model("llama"), root / f"scores.{name}" / "s" / "d.safetensors"
    moved = reference.merged(
        model,
        [reference.Moving(sibling_of(model, seed=1), reference.union_of([path], model, "0.05"), 0.4)],
    )
    reference.assert_same_bits(load_file(root / "merged" / "model.safetensors"), moved)
    report = json.loads((root / "transfer.json").read_text())
    assert report["selection"] == name
    before = path.read_bytes(), path.stat().st_mtime_ns
    again = changed(config, "trainer.default_root_dir", str(tmp_path / "again" / "run"))
    (tmp_path / "again").mkdir()
    assert run("merge", again, "--transfer.scores", path.parent.parent).status == 0
    merged = [folder / "merged" / "model.safetensors" for folder in (root, tmp_path / "again" / "run")]
    assert merged[0].read_bytes() == merged[1].read_bytes()
    assert run("profile", config).status == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_derived_selection_uses_the_papers_scores(config: Config, tmp_path: Path) -> None:
    assert run("merge", config).status == 0
    path = tmp_path / "run" / "scores" / "s" / "d.safetensors"
    before = path.stat().st_mtime_ns
    assert run("merge", changed(config, "transfer.selection", "activation_module_mean"), "--overwrite").status == 0
    assert path.stat().st_mtime_ns == before
    assert not list((tmp_path / "run").glob("scores.*"))


@pytest.mark.parametrize("verb", ["merge", "plan"])
def test_scores_of_another_scorer_are_refused(verb: str, config: Config, tmp_path: Path) -> None:
    assert run("profile", config).status == 0
    assert run("profile", config, "--transfer.selection", "local").status == 0
    for selection, other in (("local", "activation"), ("activation", "local")):
        folder = tmp_path / "run" / ("scores" if other == "activation" else f"scores.{other}")
        outcome = run(verb, config, "--transfer.selection", selection, "--transfer.scores", folder)
        assert outcome.status == 1
        assert f"must hold scores by {selection}, but holds scores by {other}" in re.sub(
            r"\s+", " ", outcome.out + outcome.err
        )


def test_a_plan_knows_them(config: Config) -> None:
    for name in SCORERS:
        outcome = run("plan", config, "--transfer.selection", name, "--json")
        assert outcome.status == 0
        memory = json.loads(outcome.out)["memory"]
        assert (memory["profiling"] == 0) == name.startswith("weight")


def example() -> str:
    """The scorer that the documentation shows."""
    text = (Path(__file__).parents[2] / "docs" / "selections.md").read_text(encoding="utf-8")
    return text.split("```python\n")[1].split("```")[0]


def test_a_scorer_of_ones_own(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source_folder: Path
) -> None:
    """The documentation's, by class path; its settings are part of what scores are used again by."""
    (tmp_path / "my_scorers.py").write_text(example())
    monkeypatch.syspath_prepend(tmp_path)
    config = changed(config, "transfer.selection", {"class_path": "my_scorers.Loudest", "init_args": {"power": 3}})
    assert run("merge", config).status == 0
    path = tmp_path / "run" / "scores.Loudest" / "s" / "d.safetensors"
    assert record(tmp_path / "run", "Loudest")["scorer"] == {
        "name": "Loudest",
        "class": "my_scorers.Loudest",
        "power": 3.0,
    }
    assert "Loudest(power=3" in json.loads((tmp_path / "run" / "transfer.json").read_text())["selection"]
    before = load_file(path)
    outcome = run("profile", changed(config, "transfer.selection.init_args.power", 1))
    assert outcome.status == 0
    assert not torch.equal(load_file(path)["lm_head"], before["lm_head"])
    outcome = run("profile", changed(config, "transfer.selection.init_args.power", 0))
    assert outcome.status == 1
    assert "must be positive" in outcome.err


class Local2(Local):
    """A scorer of somebody's own that has the name of one of ours."""


def test_a_scorer_that_takes_a_name_that_is_taken() -> None:
    (issue,) = TransferSettings(selection=Local2()).issues()
    assert "must not be called 'local'" in issue.problem
    assert TransferSettings(selection=Local2()).scorer is None


def test_selections_are_told_by_name() -> None:
    (issue,) = TransferSettings(selection="wait").issues()
    assert all(name in issue.problem for name in (*SCORERS, "random", "all"))
    assert all(issubclass(kind, Scorer) and kind.name == name for name, kind in SCORERS.items())
