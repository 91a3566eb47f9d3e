"""Every statistic against a slow re-statement, and against numbers found by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from act_lightning.analysis import (
    ccdf,
    ccdfs_by,
    chance_overlap,
    chance_overlap_by_module,
    composition,
    concentration,
    consistency,
    cross_language_overlap,
    gini,
    head_and_embedding,
    overlap_by_group,
    overlap_matrix,
    overlap_over_ratios,
    pair_groups,
    places,
    read_abilities,
    selected_by_module,
    share_held,
    shared_channels,
    top_masks,
)
from act_lightning.analysis.distribution import by_layer_and_type
from act_lightning.channels import ChannelInventory, ModuleChannels, inventory
from act_lightning.masks import ratio_count
from tests.analysis.runs import ABILITIES, tiny_channels
from tests.reference import analysis as reference
from tests.tiny import tiny_model

P = 0.05


@pytest.fixture(scope="module")
def channels() -> ChannelInventory:
    return tiny_channels()


@pytest.fixture
def scores(channels: ChannelInventory) -> dict[str, Tensor]:
    """Heavy-tailed, with ties and zeros."""
    draws = {name: torch.randn(channels.total).mul(1.5).exp() for name in read_abilities(ABILITIES)}
    return {name: torch.where(values < 0.2, 0.0, (values * 8).round() / 8) for name, values in draws.items()}


@pytest.fixture
def masks(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    return top_masks(scores, P)


def owners(channels: ChannelInventory) -> list[str]:
    return [module.name for module in channels.modules for _ in range(module.count)]


def test_the_ccdf_counts_what_lies_above(scores: dict[str, Tensor]) -> None:
    values = scores["EN-Math"]
    curve = ccdf(values, points=50)
    assert curve["share"].tolist() == [reference.share_above(values.tolist(), t) for t in curve["threshold"]]
    assert curve["threshold"].is_monotonic_increasing
    assert curve["threshold"].iloc[-1] == values.max()
    assert len(curve) <= 50


def test_every_one_of_the_largest_scores_is_a_threshold() -> None:
    values = torch.arange(10_000, dtype=torch.float32)
    assert set(range(9_990, 10_000)) <= set(ccdf(values, points=300)["threshold"])


def test_concentration(scores: dict[str, Tensor]) -> None:
    table = concentration(scores, P, thresholds=(0.5, 4.5))
    for name, tensor in scores.items():
        values = sorted(tensor.tolist())
        k = ratio_count(len(values), P)
        row = table.loc[name]
        assert row["Gini"] == pytest.approx(reference.gini(values), rel=1e-9)
        assert row["held by top p"] == pytest.approx(reference.share_held(values, k), rel=1e-9)
        assert row["lowest selected"] == values[-k]
        assert row["max"] == values[-1]
        assert row["mean"] == pytest.approx(sum(values) / len(values), rel=1e-9)
        assert row["median"] == values[(len(values) - 1) // 2]
        assert [row["> 0.5"], row["> 4.5"]] == [reference.share_above(values, 0.5), reference.share_above(values, 4.5)]


def test_concentration_by_hand() -> None:
    values = torch.tensor([0.0, 0.0, 2.0, 6.0])
    assert gini(values) == 0.625
    assert share_held(values, 0.5) == 1.0
    assert share_held(values, 0.25) == 0.75


def test_curves_by_place_are_those_of_the_members(scores: dict[str, Tensor], channels: ChannelInventory) -> None:
    values, names = scores["EN-Math"], owners(channels)
    for by, group, marker in (("layer", "1", ".1."), ("type", "q_proj", "q_proj"), ("layer", "outside", None)):
        members = [
            value
            for value, name in zip(values.tolist(), names, strict=True)
            if (marker in name if marker else ".layers." not in name)
        ]
        table = ccdfs_by(values, channels, by)
        curve = table[table[by] == group]
        assert curve["share"].tolist() == [reference.share_above(members, t) for t in curve["threshold"]]


def test_selected_channels_are_counted_where_they_lie(masks: dict[str, Tensor], channels: ChannelInventory) -> None:
    names = owners(channels)
    table = selected_by_module(masks, channels)
    assert len(table) == len(masks) * len(channels.modules)
    for _, row in table.iterrows():
        mine = [i for i in reference.chosen(masks[row["ability"]]) if names[i] == row["module"]]
        assert row["selected"] == len(mine)
        assert row["share"] == len(mine) / names.count(row["module"])
    one = table[table["ability"] == "EN-Math"]
    matrix = by_layer_and_type(one, "selected")
    assert list(matrix.index) == ["0", "1", "outside"]
    assert matrix.sum().sum() == masks["EN-Math"].sum()
    assert matrix.loc["1", "up_proj"] == one.set_index("module").loc["model.layers.1.mlp.up_proj", "selected"]


def test_composition_and_vocabulary(masks: dict[str, Tensor], channels: ChannelInventory) -> None:
    names, shares = owners(channels), composition(masks, channels)
    assert shares.sum(axis=1).tolist() == pytest.approx([1.0] * len(shares))
    table = head_and_embedding(masks, channels)
    for label, mask in masks.items():
        picked = [names[i] for i in reference.chosen(mask)]
        assert table.loc[label, "selected"] == len(picked)
        assert table.loc[label, "lm_head"] == picked.count("lm_head")
        assert table.loc[label, "embedding share"] == picked.count("model.embed_tokens") / len(picked)
        assert shares.loc[label, "lm_head"] == pytest.approx(picked.count("lm_head") / len(picked))
    assert shares.loc["all channels", "lm_head"] == pytest.approx(names.count("lm_head") / len(names))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "gemma2"])
def test_every_module_of_a_layer_has_a_type_of_its_own(architecture: str) -> None:
    channels = inventory(tiny_model(architecture))
    assert not places(channels).duplicated(["layer", "type"]).any()
    everything = {"all": torch.ones(channels.total, dtype=torch.bool)}
    assert (head_and_embedding(everything, channels).loc["all", ["lm_head", "embedding"]] > 0).all()


def test_overlaps(masks: dict[str, Tensor], channels: ChannelInventory) -> None:
    matrix, shared, names = overlap_matrix(masks), shared_channels(masks), owners(channels)
    chance, within = chance_overlap(masks), chance_overlap_by_module(masks, channels)
    for row, left in masks.items():
        for column, right in masks.items():
            assert matrix.loc[row, column] == pytest.approx(reference.overlap(left, right))
            assert shared.loc[row, column] == len(reference.chosen(left) & reference.chosen(right))
            assert chance.loc[row, column] == pytest.approx(len(reference.chosen(right)) / len(names))
            assert within.loc[row, column] == pytest.approx(reference.overlap_by_module(left, right, names))


def test_overlap_is_normalized_by_the_row() -> None:
    masks = {"a": torch.tensor([True, True, True, True]), "b": torch.tensor([True, False, False, False])}
    assert overlap_matrix(masks).to_numpy().tolist() == [[1.0, 0.25], [1.0, 1.0]]


def test_chance_within_modules_by_hand() -> None:
    two = ChannelInventory((ModuleChannels("a", 2, ()), ModuleChannels("b", 4, ())), {}, {})
    masks = {
        "r": torch.tensor([True, False, True, False, False, False]),
        "c": torch.tensor([True] * 2 + [False] * 3 + [True]),
    }
    assert chance_overlap_by_module(masks, two).loc["r", "c"] == (1 + 1 / 4) / 2


def test_the_cross_lingual_column_joins_the_other_languages_domains(masks: dict[str, Tensor]) -> None:
    table = cross_language_overlap(masks, read_abilities(ABILITIES))
    both = masks["AR-Math"] | masks["AR-Science"]
    row = table.set_index("ability").loc["EN-Science"]
    assert row["language"] == "ar"
    assert row["overlap"] == reference.overlap(masks["EN-Science"], both)
    assert row["shared"] == len(reference.chosen(masks["EN-Science"]) & reference.chosen(both))
    assert row["chance"] == len(reference.chosen(both)) / both.numel()
    assert len(table) == 4


def test_with_three_languages_all_others_are_joined_too(masks: dict[str, Tensor]) -> None:
    renamed = dict(zip(("EN-Math", "TE-Math", "AR-Math", "Words"), masks.values(), strict=True))
    table = cross_language_overlap(renamed, read_abilities(["math-en", "math-te", "math-ar", "words"]))
    mine = table[table["ability"] == "EN-Math"].set_index("language")
    assert set(mine.index) == {"te", "ar", "others"}
    assert mine.loc["others", "overlap"] == reference.overlap(
        renamed["EN-Math"], renamed["TE-Math"] | renamed["AR-Math"]
    )
    assert "Words" not in set(table["ability"])


def test_overlap_at_every_ratio(scores: dict[str, Tensor]) -> None:
    groups = pair_groups(read_abilities(ABILITIES))
    table = overlap_over_ratios(scores, (0.02, 0.3), groups)
    for _, row in table.iterrows():
        masks = top_masks(scores, row["ratio"])
        same = {pair: group == row["group"] for pair, group in groups.items()}
        assert row["overlap"] == pytest.approx(reference.mean_overlaps(masks, same))
        assert row["pairs"] == sum(same.values())
    assert set(table["group"]) == set(groups.values()) == set(overlap_by_group({}, groups).index)


def test_consistency_across_pairs(masks: dict[str, Tensor]) -> None:
    first = {"math": masks["EN-Math"], "code": masks["AR-Math"]}
    second = {"science": masks["EN-Math"], "math": masks["EN-Science"]}
    table = consistency({"one": first, "two": second})
    assert len(table) == 1
    row = table.iloc[0]
    assert (row["first"], row["second"], row["ability"]) == ("one", "two", "math")
    assert row["overlap"] == reference.overlap(masks["EN-Math"], masks["EN-Science"])
