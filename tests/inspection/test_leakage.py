"""Prompts in two sets, compared with the obvious search for shared texts and shared runs of 13 words."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from act_lightning.inspection import hash_prompts, normalized, overlaps
from act_lightning.inspection.leakage import Overlap

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


words = st.lists(st.sampled_from("abcd"), max_size=30).map(" ".join)


@settings(deadline=None)
@given(st.lists(words, max_size=14), st.lists(words, max_size=14))
def test_finds_what_a_search_by_words_finds(first: list[str], second: list[str]) -> None:
    one, other = hash_prompts(first), hash_prompts(second)
    assert one.found_in(other).tolist() == shared(first, second)
    found = overlaps({"a": one, "b": other}, {}, 0.0)
    counts = sum(shared(first, second)), sum(shared(second, first))
    assert [(pair.first_shared, pair.second_shared) for pair in found] == ([counts] if any(counts) else [])


def test_one_percent_of_the_smaller_set_is_enough() -> None:
    train = [f"question number {i} of all" for i in range(1000)]
    test = [f"another {i}" for i in range(9)] + ["Question — number 7, of ALL!"]
    hashes = {"train": hash_prompts(train)}, {"test": hash_prompts(test)}
    assert overlaps(*hashes, 0.01) == [Overlap("train", "test", 1, 1, 0.1, 1)]
    assert overlaps(*hashes, 0.1) == []
    assert overlaps({}, {**hashes[0], **hashes[1]}, 0.0) == []  # evaluation sets may share theirs


def test_thirteen_words_in_a_row_and_twelve() -> None:
    words = LONG.split()
    whole, part = hash_prompts([LONG]), hash_prompts(["Well: " + " ".join(words[3:16]) + " then"])
    assert whole.found_in(part).tolist() == [True]
    assert whole.found_in(hash_prompts(["Well: " + " ".join(words[3:15]) + " then"])).tolist() == [False]


def test_languages_without_blanks() -> None:
    chinese = "安娜有三个苹果和两个梨她一共有多少个水果呢"
    assert hash_prompts([chinese]).found_in(hash_prompts(["请回答" + chinese[2:18]])).tolist() == [True]


def test_instructions_that_many_prompts_share_are_no_material() -> None:
    first = [f"{LONG} {i}" for i in range(11)]
    assert not hash_prompts(first).found_in(hash_prompts([LONG + " end"])).any()
    assert hash_prompts(first[:10]).found_in(hash_prompts([LONG + " end"])).all()


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
    sets = {f"s{i}": hash_prompts([f"{LONG} {i} {i} {i}" if i % 2 else f"only {i}"]) for i in range(6)}
    assert {(pair.first, pair.second) for pair in overlaps(sets, {}, 0.0)} == {("s1", "s3"), ("s1", "s5"), ("s3", "s5")}
