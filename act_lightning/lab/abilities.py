"""The laboratory's questions and answers, made on the fly and split once and for all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from typing import TypeVar

from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.lab.number_words import LANGUAGES, LARGEST

ABILITIES = ("arithmetic", "words", *(f"words-{code}" for code in LANGUAGES))
SPLITS = ("train", "validation", "test")

_LARGEST_SUM = 99
_TEST_NUMBERS, _TEST_PAIRS, _VALIDATION_ITEMS = 300, 400, 60
_SEED = "act_lightning laboratory"

Item = TypeVar("Item")


def rows(name: str, split: str = "train") -> list[dict[str, str]]:
    """All rows of one ability and split, in an order that looks random and never changes.

    A number that is held out is held out in every language, a pair of summands in both orders.

    >>> rows("words-de", "test")[0]
    {'prompt': 'Write 34 in German.', 'answer': 'vierunddreißig'}

    Args:
        name: One of ``ABILITIES``.
        split: One of ``SPLITS``.

    Returns:
        Rows with a ``prompt`` and its only right ``answer``.

    Raises:
        ActError: There is no such ability or split.
    """
    _check(name, split)
    order = random.Random(f"{_SEED} {name} {split}")
    found = _sums(split, order) if name == "arithmetic" else _words(name, split)
    order.shuffle(found)
    return found


def _check(name: str, split: str) -> None:
    issues = []
    if name not in ABILITIES:
        problem, hint = "must name an ability of the laboratory", f"Take one of {', '.join(ABILITIES)}."
        issues.append(ConfigIssue("lab data set", name, problem, hint))
    if split not in SPLITS:
        issues.append(ConfigIssue("split", split, "must name a split", f"Take one of {', '.join(SPLITS)}."))
    raise_if_any(issues)


def _words(name: str, split: str) -> list[dict[str, str]]:
    codes = LANGUAGES if name == "words" else (name.removeprefix("words-"),)
    numbers = _part(range(1, LARGEST + 1), split, _TEST_NUMBERS)
    return [_word(number, code) for code in codes for number in numbers]


def _word(number: int, code: str) -> dict[str, str]:
    language, write = LANGUAGES[code]
    return {"prompt": f"Write {number} in {language}.", "answer": write(number)}


def _sums(split: str, order: random.Random) -> list[dict[str, str]]:
    """Both orders of a pair for training; one, drawn, where rows are counted and should not repeat each other."""
    pairs = [(a, b) for a in range(1, _LARGEST_SUM) for b in range(a, _LARGEST_SUM + 1 - a)]
    chosen = _part(pairs, split, _TEST_PAIRS)
    if split == "train":
        ordered = list(chain.from_iterable(dict.fromkeys([(a, b), (b, a)]) for a, b in chosen))
    else:
        ordered = [(a, b) if order.random() < 0.5 else (b, a) for a, b in chosen]
    return [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a, b in ordered]


def _part(items: Sequence[Item], split: str, tests: int) -> list[Item]:
    """The share of ``items`` that belongs to ``split``."""
    shuffled = random.Random(_SEED).sample(items, len(items))
    ends = {"test": (0, tests), "validation": (tests, tests + _VALIDATION_ITEMS)}
    return shuffled[slice(*ends.get(split, (tests + _VALIDATION_ITEMS, None)))]
