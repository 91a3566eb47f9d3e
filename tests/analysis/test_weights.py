"""Finding 5: norms of weight changes read from disk, and how rankings agree."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from act_lightning.analysis import agreement, average_ranks, weight_change
from act_lightning.analysis.report.comparison_sections import weight_change_section
from act_lightning.analysis.report.evidence import gather
from act_lightning.analysis.report.page import ReportTable, Section
from act_lightning.analysis.saved import read_runs
from act_lightning.analysis.weights import NotOnDisk, find_models
from act_lightning.channels import inventory
from act_lightning.checkpoints.compatibility import match_vocabularies
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError
from tests.analysis.runs import write_run
from tests.reference import analysis as reference
from tests.reference.channels import channels
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("architecture", "overrides"), [("qwen2", {}), ("llama", {"tie_word_embeddings": True}), ("gpt2", {})]
)
def test_every_channels_norm_is_that_of_all_it_owns(
    architecture: str, overrides: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("act_lightning.checkpoints.weight_delta._BLOCK", 500)  # several blocks a matrix
    target = tiny_model(architecture, **overrides)
    source = sibling_of(target, seed=3)
    folders = [save_model(model, tiny_tokenizer(), tmp_path / str(i)) for i, model in enumerate((target, source))]
    with CheckpointReader(folders[0]) as ours, CheckpointReader(folders[1]) as theirs:
        change = weight_change(ours, theirs, inventory(target), quiet=True)
    assert change.dtype == torch.float32
    assert change.tolist() == pytest.approx(reference.weight_change(target, source, channels(target)), rel=1e-5)


def save_renumbered(model: PreTrainedModel, folder: Path) -> Path:
    """The same model with a tokenizer that numbers its tokens in the reverse order."""
    tokenizer, weights = tiny_tokenizer(), model.state_dict()
    order = torch.arange(len(tokenizer)).flip(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][order]
    renumbered = copy.deepcopy(model)
    renumbered.load_state_dict(weights)
    save_model(renumbered, tokenizer, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {token: int(order[number]) for token, number in content["model"]["vocab"].items()}
    content["added_tokens"] = [token | {"id": int(order[token["id"]])} for token in content["added_tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_tokens_are_compared_under_the_numbers_that_each_model_gives_them(tmp_path: Path) -> None:
    target, source = tiny_model("llama"), sibling_of(tiny_model("llama"), seed=3)
    folders = save_model(target, tiny_tokenizer(), tmp_path / "t"), save_renumbered(source, tmp_path / "s")
    expected = torch.tensor(reference.weight_change(target, source, channels(target)))
    with CheckpointReader(folders[0]) as ours, CheckpointReader(folders[1]) as theirs:
        change = weight_change(ours, theirs, inventory(target), match_vocabularies(*folders), quiet=True)
    assert change.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    evidence = gather([write_run(tmp_path / "run", (str(folders[0]), str(folders[1])))], quiet=True)
    (section,) = weight_change_section(evidence)
    assert isinstance(section, Section)
    (table,) = (item.frame for item in section.content if isinstance(item, ReportTable))
    correlations = agreement(evidence.views[0].scores, expected.float(), evidence.ratio)["rank correlation"]
    assert table["rank correlation"].tolist() == pytest.approx(correlations.tolist(), abs=1e-4)


def test_agreement(tmp_path: Path) -> None:
    values = torch.rand(200).mul(20).round()
    change = torch.rand(200).mul(20).round() + values
    table = agreement({"math": values}, change, 0.1)
    best = [sorted(range(200), key=lambda i: (-scores[i], i))[:20] for scores in (values.tolist(), change.tolist())]
    row = table.loc["math"]
    assert row["shared"] == len({*best[0]} & {*best[1]})
    assert row["overlap"] == row["shared"] / 20
    assert row["chance"] == 0.1
    assert row["rank correlation"] == pytest.approx(reference.spearman(values.tolist(), change.tolist()))


def test_agreement_by_hand() -> None:
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    same = agreement({"x": scores}, scores * 7, 0.5).loc["x"]
    opposed = agreement({"x": scores}, -scores, 0.5).loc["x"]
    assert (same["overlap"], same["rank correlation"]) == (1.0, 1.0)
    assert (opposed["overlap"], opposed["rank correlation"]) == (0.0, -1.0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ranks_of_equal_values_are_their_mean(values: list[int]) -> None:
    ranks = average_ranks(torch.tensor(values, dtype=torch.float32)).tolist()
    ordered = sorted(values)
    for value, rank in zip(values, ranks, strict=True):
        places = [i + 1 for i, other in enumerate(ordered) if other == value]
        assert rank == sum(places) / len(places)


def test_models_are_found_by_path_or_where_the_user_says(
    tmp_path: Path, target_folder: Path, source_folder: Path
) -> None:
    (pair,) = read_runs([write_run(tmp_path, (str(target_folder), str(source_folder)))]).pairs
    assert find_models(pair, {}) == (target_folder, source_folder)
    with pytest.raises(ActError, match=r"--model.*not those that the scores were measured on"):
        find_models(pair, {str(source_folder): target_folder})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no/such-model", "neither a folder here nor in the hub's cache"),
        ("lab:nothing", "is no model of the laboratory"),
        ("a folder: that is none", "neither a folder"),
    ],
)
def test_a_model_that_is_not_here_is_not_fetched(name: str, reason: str, tmp_path: Path, target_folder: Path) -> None:
    (pair,) = read_runs([write_run(tmp_path, (str(target_folder), name))]).pairs
    with pytest.raises(NotOnDisk, match=reason):
        find_models(pair, {})
