"""Finding 5: norms of weight changes read from disk, and how rankings agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from act_lightning.analysis import agreement, average_ranks, weight_change
from act_lightning.analysis.saved import read_runs
from act_lightning.analysis.weights import NotOnDisk, find_models
from act_lightning.channels import inventory
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
        ("lab:nothing", "has not been built"),
        ("a folder: that is none", "neither a folder"),
    ],
)
def test_a_model_that_is_not_here_is_not_fetched(name: str, reason: str, tmp_path: Path, target_folder: Path) -> None:
    (pair,) = read_runs([write_run(tmp_path, (str(target_folder), name))]).pairs
    with pytest.raises(NotOnDisk, match=reason):
        find_models(pair, {})
