"""Prompts in two sets, compared with the obvious search for shared texts and shared runs of 13 words."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from act_lightning.data.leakage import Overlap, hash_prompts, normalized, overlaps

LONG = "the quick brown fox jumps over the lazy dog while a small red hen looks on and on"


def shared(first: list[str], second: list[str]) -> list[bool]:
    """Which prompts of the first are in the second, by words themselves."""

    def runs(prompts: list[str]) -> list[set[tuple[str, ...]]]:
        words = [normalized(prompt).split() for prompt in prompts]
        found = [{tuple(one[i : i + 13]) for i in range(len(one) - 12)} for one in words]
        return [{run for run in one if sum(run in other for other in found) <= 10} for one in found]

    there = set[tuple[str, ...]]().union(*runs(second))
    texts = {normalized(prompt) for prompt in second}
    return [normalized(prompt) in texts or bool(one & there) for prompt, one in zip(first, runs(first), strict=True)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("\uff21pples,  “ten”!", "APPLES ten", True),
        ("straße", "STRASSE", True),
        ("3 + 4?", "3 - 4?", False),
        ("3 - 4", "3-4", True),
        ("12 - 7 =", "12 7 =", False),
        ("well-known", "well known", True),
        ("1.5", "15", False),
        ("கா", "க", False),  # marks of other scripts are part of a word
    ],
)
def test_normalized_text(one: str, other: str, same: bool) -> None:
    assert (normalized(one) == normalized(other)) is same


def counts(first: list[str], second: list[str]) -> tuple[int, int]:
    """How many prompts of each stand in the other, by hashes."""
    found = overlaps({"a": hash_prompts(first), "b": hash_prompts(second)}, {}, 0.0)
    return (found[0].first_shared, found[0].second_shared) if found else (0, 0)


words = st.lists(st.sampled_from("abcd"), max_size=30).map(" ".join)


@settings(deadline=None)
@given(st.lists(words, max_size=14), st.lists(words, max_size=14))
def test_finds_what_a_search_by_words_finds(first: list[str], second: list[str]) -> None:
    assert counts(first, second) == (sum(shared(first, second)), sum(shared(second, first)))


def test_one_percent_of_the_smaller_set_is_enough() -> None:
    train = [f"question number {i} of all" for i in range(1000)]
    test = [f"another {i}" for i in range(9)] + ["Question — number 7, of ALL!"]
    hashes = {"train": hash_prompts(train)}, {"test": hash_prompts(test)}
    assert overlaps(*hashes, 0.01) == [Overlap("train", "test", 1, 1, 0.1, 1)]
    assert overlaps(*hashes, 0.1) == []
    assert overlaps({}, {**hashes[0], **hashes[1]}, 0.0) == []  # evaluation sets may share theirs


def test_thirteen_words_in_a_row_and_twelve() -> None:
    words = LONG.split()
    assert counts([LONG], ["Well: " + " ".join(words[3:16]) + " then"]) == (1, 1)
    assert counts([LONG], ["Well: " + " ".join(words[3:15]) + " then"]) == (0, 0)
    assert counts([" ".join(words[:7]), " ".join(words[7:])], [" ".join(words)]) == (0, 0)  # parts of two prompts


def test_languages_without_blanks() -> None:
    chinese = "安娜有三个苹果和两个梨她一共有多少个水果呢"
    assert counts([chinese], ["请回答" + chinese[2:18]]) == (1, 1)


def test_instructions_that_many_prompts_share_are_no_material() -> None:
    first = [f"{LONG} {i}" for i in range(11)]
    assert counts(first, [LONG + " end"]) == (0, 0)
    assert counts(first[:10], [LONG + " end"]) == (10, 1)


def test_a_large_set_is_thinned_and_still_compared() -> None:
    vocabulary = [f"w{i}" for i in range(5000)]
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(vocabulary, k=60)) for _ in range(200)]
    large, small = hash_prompts(prompts, most_runs=1000), hash_prompts([f"so {prompts[i]} now" for i in range(20)])
    assert (large.one_in, small.one_in) == (16, 1)
    assert len(large.runs) <= 1000
    (found,) = overlaps({"large": large, "small": small}, {}, 0.01)
    assert found.second_shared >= 16  # 48 runs each, one in 16 kept: each is missed with probability 0.05
    assert found.same_text == 0


def test_many_sets_pair_by_pair() -> None:
    sets = {
        f"s{i}": hash_prompts([f"{LONG} {i} {i}", f"only {i}"] if i % 30 == 1 else [f"only {i}"]) for i in range(70)
    }
    found = {(pair.first, pair.second): (pair.share, pair.same_text) for pair in overlaps(sets, {}, 0.0)}
    assert found == dict.fromkeys([("s1", "s31"), ("s1", "s61"), ("s31", "s61")], (0.5, 0))
