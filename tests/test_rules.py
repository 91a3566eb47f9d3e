"""The rules that were tried: their gradients against autograd, their sets, and one random patch against attribution."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from act_lightning.data.labels import Sample
from benchmarks import rules, study, study_tables
from tests.loops import random_samples
from tests.reference import act, attribution
from tests.tiny import sibling_of, tiny_model

ROWS = {"recover": random_samples(7), "keep": random_samples(5, seed=9)}
SAMPLES = {
    role: [Sample(torch.tensor(ids), torch.tensor(labels)) for ids, labels in of_role] for role, of_role in ROWS.items()
}

TOKENS = sum(label != act.IGNORED for _, labels in ROWS["recover"] for label in labels)


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    target = tiny_model("llama", tie_word_embeddings=True)
    return target, sibling_of(target, seed=1)


def pair_of(models: tuple[PreTrainedModel, PreTrainedModel], samples: Mapping[str, list[Sample]]) -> rules.WholePair:
    return rules.WholePair(*models, samples)


def near(target: PreTrainedModel, source: PreTrainedModel) -> PreTrainedModel:
    """A hundredth of the way from target to source."""
    model = copy.deepcopy(target)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), source.parameters(), strict=True):
            ours.add_(0.01 * (theirs - ours))
    return model


def test_attribution_is_the_packages(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    found, expected = pair_of(models, SAMPLES).attribution(), attribution.scores(*models, ROWS["recover"])
    torch.testing.assert_close(found.tolist(), expected, rtol=1e-3, atol=1e-5 * max(map(abs, expected)))


def test_what_is_kept_depends_on_is_ranked_last(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    pair = pair_of(models, SAMPLES)
    spared = pair.top(pair.magnitude("keep", 0.0, pair.target), 0.3)
    for rule in (rules.disjoint, rules.led):
        scores = rule(pair)
        assert not bool(spared[scores.topk(20).indices].any())
        assert scores[spared].max() < scores[~spared].max()
    assert rules.disjoint(pair)[spared].max() < pair.attribution().min()
    assert torch.equal(rules.disjoint(pair)[~spared], pair.attribution()[~spared])
    assert torch.isfinite(rules.reason_any(pair)).all()
    assert torch.isfinite(rules.over_fisher(pair)).all()


def test_one_random_patch_is_a_sum_of_attributions(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """For siblings so close that the loss is a line between them."""
    target, source = models
    pair = pair_of((target, near(target, source)), {"recover": SAMPLES["recover"][:1], "keep": []})
    estimates = pair.random_patches(1, shrunk=False) * pair.sizes
    tied = {"lm_head", "model.embed_tokens"}
    weights = torch.cat([torch.full((m.count,), 2.0 if m.name in tied else 1.0) for m in pair.channels.modules])
    change = estimates / weights  # z_i (L(−z) − L(z)), all of one size
    assert change.abs().max() - change.abs().min() < 1e-9
    expected = float((change.sign() * pair.attribution() * pair.sizes / weights).sum())
    assert float(change.abs()[0]) == pytest.approx(abs(expected), rel=0.02)


def test_the_effect_of_a_module_is_shared_out(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """Between close siblings it is the sum of its channels' attributions; the energy is that of outputs with bias."""
    target, source = models
    pair = pair_of((target, near(target, source)), SAMPLES)
    effects, sums, scores = pair.module_effects(7), pair.attribution() * pair.sizes, rules.patched_modules(pair)
    for _, span in pair.channels.spans():
        torch.testing.assert_close(effects[span.start], sums[span].sum(), rtol=0.02, atol=1e-6)
        total = (scores * pair.sizes)[span].sum()
        torch.testing.assert_close(total, effects[span.start].clamp(min=0), rtol=1e-6, atol=0)
    hidden = {}
    name = "model.layers.1.mlp.down_proj"
    module = target.get_submodule(name)
    expected = torch.zeros(module.weight.shape[0], dtype=torch.float64)
    change = (source.get_submodule(name).weight - module.weight).detach()
    handle = module.register_forward_pre_hook(lambda _, inputs: hidden.update(x=inputs[0][0]))
    for ids, labels in ROWS["recover"]:
        with torch.no_grad():
            target(input_ids=torch.tensor([ids]))
        answers = [position for position, label in enumerate(labels) if label != act.IGNORED]
        expected += (hidden["x"][answers] @ change.T).double().square().sum(0) / TOKENS
    handle.remove()
    span = next(span for module, span in pair.channels.spans() if module.name == name)
    torch.testing.assert_close(pair_of(models, SAMPLES).local_energy()[span], expected, rtol=1e-3, atol=1e-9)


def test_every_rule_has_a_name_of_its_own() -> None:
    assert not set(rules.RULES) & set(study.BASELINES)


def test_results_show_the_table_of_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "METHODS", study.METHODS | rules.RULES)
    folder = Path(study.__file__).parent
    report = study_tables.Report(rules.PART, study.read_rows(folder / "study" / "rules" / "rules.csv"))
    table = "\n".join(study_tables.summary(report, list(report.seeds)))
    assert table == (folder / "study" / "rules" / "rules-summary.md").read_text(encoding="utf-8").strip()
    assert table in (folder / "RESULTS.md").read_text(encoding="utf-8")
