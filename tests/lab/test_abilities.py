"""Rows are right, never change, and what is held out is held out everywhere."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from num2words import num2words

from act_lightning.errors import ActError
from act_lightning.lab.abilities import ABILITIES, LANGUAGES, LARGEST, SPLITS, rows


def numbers(name: str, split: str) -> set[tuple[int, ...]]:
    """What a split asks about: one number, or two summands in either order."""
    return {tuple(sorted(map(int, re.findall(r"\d+", row["prompt"])))) for row in rows(name, split)}


@pytest.mark.parametrize("name", ABILITIES)
def test_splits_share_nothing_and_cover_all(name: str) -> None:
    parts = [numbers(name, split) for split in SPLITS]
    whole = set().union(*parts)
    assert sum(map(len, parts)) == len(whole)
    assert len(whole) == (99 * 99 // 4 if name == "arithmetic" else 999)
    assert len(rows(name, "test")) >= 300


def test_held_out_numbers_are_held_out_in_every_language() -> None:
    assert len({frozenset(numbers(name, "test")) for name in ABILITIES if name != "arithmetic"}) == 1
    assert {row["prompt"] for row in rows("words")} == {
        row["prompt"] for name in ABILITIES if name.startswith("words-") for row in rows(name)
    }


@pytest.mark.parametrize("split", SPLITS)
def test_sums_are_right(split: str) -> None:
    for row in rows("arithmetic", split):
        first, second = re.fullmatch(r"(\d+) \+ (\d+) =", row["prompt"]).groups()  # type: ignore[union-attr]
        assert int(first) + int(second) == int(row["answer"]) <= 99


def test_no_row_comes_twice_and_evaluation_asks_each_pair_once() -> None:
    for name in ABILITIES:
        for split in SPLITS:
            prompts = [row["prompt"] for row in rows(name, split)]
            assert len(set(prompts)) == len(prompts)
    assert len(numbers("arithmetic", "test")) == len(rows("arithmetic", "test"))


def test_order_mixes_languages() -> None:
    first = [row["prompt"].split()[-1] for row in rows("words", "test")[:100]]
    assert all(first.count(language) >= 10 for language in ("English.", "German.", "French.", "Spanish."))


def test_rows_never_change() -> None:
    """Other rows are another laboratory: raise ``models.GENERATION`` with this hash."""
    everything = [rows(name, split) for name in ABILITIES for split in SPLITS]
    digest = hashlib.sha256(json.dumps(everything).encode()).hexdigest()
    assert digest[:16] == "43eef440eb7a1249"


def test_refused_together() -> None:
    with pytest.raises(ActError, match=r"(?s)words-it.*words-de.*split = 'dev'.*validation"):
        rows("words-it", "dev")


@pytest.mark.parametrize("code", LANGUAGES)
def test_words_equal_those_of_num2words(code: str) -> None:
    _, write = LANGUAGES[code]
    numbers = range(LARGEST + 1)
    assert [write(number) for number in numbers] == [num2words(number, lang=code) for number in numbers]
