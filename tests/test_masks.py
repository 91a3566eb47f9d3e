"""Masks against Python's own sort, brute force over elements, and properties that any ranking has."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from act_lightning.channels import ChannelInventory, ModuleChannels, inventory
from act_lightning.errors import ActError
from act_lightning.masks import (
    eligible_channels,
    overlap,
    random_scores,
    rank,
    ratio_count,
    ratio_issues,
    top_by_parameters,
    top_channels,
    top_per_module,
    union,
)
from tests.reference import masks as reference
from tests.reference.channels import channels, qwen_7b
from tests.tiny import tiny_model

TINY: Any = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "max_position_embeddings": 6,
}
fast = settings(deadline=None, max_examples=60)
values = st.one_of(st.sampled_from([0.0, 0.25, 1.0, 7.5]), st.floats(0, 1e6, width=32))
ratios = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


@st.composite
def scored(draw: st.DrawFn, smallest: int = 1) -> tuple[Tensor, Tensor]:
    """Scores, many of them equal, and which channels are allowed."""
    pairs = draw(st.lists(st.tuples(values, st.booleans()), min_size=smallest, max_size=60))
    return torch.tensor([score for score, _ in pairs]), torch.tensor([allowed for _, allowed in pairs])


def everything(total: int) -> Tensor:
    return torch.ones(total, dtype=torch.bool)


@pytest.mark.parametrize(
    ("count", "ratio", "expected"),
    [
        (100, 0.29, 29),
        (100, 0.57, 57),
        (1_750_528, 0.01, 17_505),
        (1_750_528, 0.09, 157_547),
        (10, 1, 10),
        (10, 1.0, 10),
        (99, 0.01, 0),
        (200_000, 1e-05, 2),
        (9, Fraction(1, 3), 3),
        (9, 0.3333333333333333, 2),
    ],
)
def test_share_takes_the_decimal_as_written(count: int, ratio: float | Fraction, expected: int) -> None:
    assert ratio_count(count, ratio) == expected


def test_share_at_every_percent_and_per_mille() -> None:
    for n in range(1, 101):
        assert ratio_count(100, n / 100) == n
        assert ratio_count(1_750_528, n / 1000) == reference.whole_part(1_750_528, f"{n}e-3")


@pytest.mark.parametrize("ratio", [0, 1.5, math.nan, math.inf, -0.1, True, Fraction(3, 2)])
def test_ratio_outside_its_range(ratio: float | Fraction) -> None:
    (issue,) = ratio_issues(ratio, "profile.sources.0.ratio")
    assert str(issue).startswith(f"profile.sources.0.ratio = {ratio!r}: must lie in (0, 1]. ")


@pytest.mark.parametrize("ratio", [1, 1.0, 0.01, 1e-12, Fraction(1, 3)])
def test_ratio_inside_its_range(ratio: float | Fraction) -> None:
    assert ratio_issues(ratio) == []


@fast
@given(scored(), ratios)
def test_top_is_the_head_of_a_sort(case: tuple[Tensor, Tensor], ratio: float) -> None:
    scores, allowed = case
    assert top_channels(scores, ratio, allowed).tolist() == reference.top(scores.tolist(), str(ratio), allowed.tolist())
    assert rank(scores, allowed).tolist() == reference.ranking(scores.tolist(), allowed.tolist())


@fast
@given(scored(), ratios, ratios)
def test_masks_are_nested(case: tuple[Tensor, Tensor], first: float, second: float) -> None:
    scores, allowed = case
    small, large = (top_channels(scores, ratio, allowed) for ratio in sorted((first, second)))
    assert not (small & ~large).any()
    assert not (large & ~allowed).any()
    assert torch.equal(top_channels(scores, 1, allowed), allowed)


@fast
@given(scored(), ratios)
def test_only_the_order_of_allowed_scores_matters(case: tuple[Tensor, Tensor], ratio: float) -> None:
    scores, allowed = case
    mask = top_channels(scores, ratio, allowed)
    places = torch.unique(scores, return_inverse=True)[1].float()
    assert torch.equal(top_channels(places, ratio, allowed), mask)
    assert torch.equal(top_channels(scores.masked_fill(~allowed, 1e9), ratio, allowed), mask)


@fast
@given(st.permutations(range(40)), ratios)
def test_renumbering_channels_renumbers_the_mask(order: list[int], ratio: float) -> None:
    scores = torch.arange(40.0)
    assert torch.equal(
        top_channels(scores[order], ratio, everything(40)), top_channels(scores, ratio, everything(40))[order]
    )


def test_all_equal_takes_the_first() -> None:
    assert top_channels(torch.zeros(10), 0.3, everything(10)).nonzero().flatten().tolist() == [0, 1, 2]
    allowed = torch.tensor([False, True] * 5)
    assert top_channels(torch.zeros(10), 0.6, allowed).nonzero().flatten().tolist() == [1, 3, 5]


@fast
@given(scored(smallest=6), ratios)
def test_top_per_module(case: tuple[Tensor, Tensor], ratio: float) -> None:
    scores, allowed = case
    counts = [1, 4, len(scores) - 5]
    layout = ChannelInventory(tuple(ModuleChannels(f"m{i}", n, ()) for i, n in enumerate(counts)), {}, {})
    owners = [module.name for module in layout.modules for _ in range(module.count)]
    expected = reference.top_per_module(scores.tolist(), str(ratio), allowed.tolist(), owners)
    assert top_per_module(scores, ratio, allowed, layout).tolist() == expected


@pytest.mark.parametrize(
    ("architecture", "tied", "excluded"),
    [
        ("gpt2", True, []),
        ("gpt2", True, ["lm_head"]),
        ("gpt2", True, ["*.wte", "*.ln_*"]),
        ("llama", True, ["*norm*"]),
        ("gemma2", True, []),
        ("qwen2", False, []),
        ("qwen2", False, ["*.embed_tokens"]),
    ],
)
def test_top_by_parameters(architecture: str, tied: bool, excluded: list[str]) -> None:
    model = tiny_model(architecture, tie_word_embeddings=tied, **TINY)
    found = inventory(model)
    allowed = eligible_channels(found, ["*"], excluded)
    scores = torch.randint(0, 50, (found.total,)).float()
    for ratio in (1e-4, 0.01, 0.29, 0.5, 0.999, 1):
        mask = top_by_parameters(scores, ratio, allowed, found)
        expected, spent = reference.top_by_parameters(model, scores.tolist(), str(ratio), allowed.tolist())
        assert mask.tolist() == expected
        assert found.count_elements(mask) == spent
    assert torch.equal(mask, allowed)


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        (["lm_head"], {"lm_head"}),
        (
            ["model.layers.?.mlp.*_proj"],
            {f"model.layers.{n}.mlp.{p}_proj" for n in (0, 1) for p in ("gate", "up", "down")},
        ),
        (
            ["*norm"],
            {"model.norm"} | {f"model.layers.{n}.{p}_layernorm" for n in (0, 1) for p in ("input", "post_attention")},
        ),
        (["model.norm", "model.[en]*"], {"model.norm", "model.embed_tokens"}),
        ([], set()),
    ],
)
def test_candidates(patterns: list[str], gone: set[str]) -> None:
    model = tiny_model("llama")
    expected = [name not in gone for name, _, _ in channels(model)]
    assert eligible_channels(inventory(model), ["*"], iter(patterns)).tolist() == expected
    if patterns:
        kept = [not is_left for is_left in expected]
        assert eligible_channels(inventory(model), iter(patterns), []).tolist() == kept
        both = eligible_channels(inventory(model), ["lm_head", "model.*", *patterns], patterns)
        assert both.tolist() == expected, "a pattern to exclude wins"


def test_every_pattern_that_matches_nothing_is_named() -> None:
    found = inventory(tiny_model("llama"))
    with pytest.raises(ActError) as raised:
        eligible_channels(found, ["lm_head", "LM_HEAD"], ["lm_head", "*.mpl.*"])
    named = [(issue.setting, issue.value) for issue in raised.value.issues]
    assert named == [("transfer.include", "LM_HEAD"), ("transfer.exclude", "*.mpl.*")]
    assert "'lm_head'" in str(raised.value)
    with pytest.raises(ActError, match="must leave some channels"):
        eligible_channels(found, ["*"], ["lm_head", "model.*"])
    with pytest.raises(ActError, match=r"transfer\.exclude = \['\*norm'\]: must leave some channels"):
        eligible_channels(found, ["model.norm"], ["*norm"])
    with pytest.raises(ActError, match=r"transfer\.include = \[\]: must leave some channels"):
        eligible_channels(found, [], [])


def test_random_scores() -> None:
    first = random_scores(1000, 42, "source", "ability")
    torch.manual_seed(7)
    assert torch.equal(random_scores(1000, 42, "source", "ability"), first)
    for key in [
        (43, "source", "ability"),
        (42, "other", "ability"),
        (42, "source", "other"),
        (42, "sourcea", "bility"),
    ]:
        agree = overlap(
            top_channels(first, 0.5, everything(1000)), top_channels(random_scores(1000, *key), 0.5, everything(1000))
        )
        assert 0.4 < agree < 0.6
    assert first.dtype == torch.float32
    assert 0 <= first.min() < 0.01 < 0.99 < first.max() < 1


def test_random_scores_leave_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random_scores(10, "any")
    assert torch.equal(torch.rand(3), expected)


@fast
@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=2, max_size=4))
def test_union_and_overlap(rows: list[list[bool]]) -> None:
    masks = [torch.tensor(row) for row in rows]
    sets = [{i for i, chosen in enumerate(row) if chosen} for row in rows]
    assert set(union(masks).nonzero().flatten().tolist()) == set().union(*sets)
    shared = len(sets[0] & sets[1])
    assert overlap(masks[0], masks[1]) == (shared / len(sets[0]) if sets[0] else 0)


@pytest.mark.parametrize("ratio", [0.01, 0.9])
def test_a_7b_model_is_masked_in_under_a_second(ratio: float) -> None:
    found = inventory(qwen_7b(tied=True))
    scores, allowed = torch.rand(found.total), everything(found.total)
    assert int(top_channels(scores, ratio, allowed).sum()) == ratio_count(1_750_528, ratio)
    assert seconds(lambda: top_channels(scores, ratio, allowed)) < 1
    assert seconds(lambda: top_by_parameters(scores, ratio, allowed, found)) < 3  # sorts them all


def seconds(work: Callable[[], object]) -> float:
    """Processor time of the quickest of three runs, so that a busy machine does not count."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)
