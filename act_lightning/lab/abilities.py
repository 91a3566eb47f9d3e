"""The laboratory's questions and answers: sums, and numbers from 0 to 999 in words of four languages.

Spellings: "and" in English ("one hundred and one"), "ein" before "hundert" in German, no hyphen around "cent" and
"et" in French (the spelling before 1990).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from act_lightning.errors import ConfigIssue, raise_if_any

LARGEST = 999

_EN_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_EN_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

_DE_SMALL = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
).split()
_DE_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()

_FR_SMALL = (
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
    "dix-huit dix-neuf"
).split()
_FR_TENS = "vingt trente quarante cinquante soixante".split()

_ES_SMALL = (
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis "
    "veintisiete veintiocho veintinueve"
).split()
_ES_TENS = "treinta cuarenta cincuenta sesenta setenta ochenta noventa".split()
_ES_HUNDREDS = (
    "ciento doscientos trescientos cuatrocientos quinientos seiscientos setecientos ochocientos novecientos"
).split()


def english(number: int) -> str:
    """``number`` in English words.

    >>> english(347)
    'three hundred and forty-seven'
    """
    hundreds, rest = divmod(number, 100)
    tens, units = divmod(rest, 10)
    below_100 = _EN_SMALL[rest] if rest < 20 else _EN_TENS[tens - 2] + (f"-{_EN_SMALL[units]}" if units else "")
    if not hundreds:
        return below_100
    head = f"{_EN_SMALL[hundreds]} hundred"
    return f"{head} and {below_100}" if rest else head


def german(number: int) -> str:
    """``number`` in German words.

    >>> german(347)
    'dreihundertsiebenundvierzig'
    """
    hundreds, rest = divmod(number, 100)
    tens, units = divmod(rest, 10)
    stems = ["", "ein", *_DE_SMALL[2:10]]  # of digits before "hundert" and "und"
    below_100 = _DE_SMALL[rest] if rest < 20 else (f"{stems[units]}und" if units else "") + _DE_TENS[tens - 2]
    if not hundreds:
        return below_100
    return f"{stems[hundreds]}hundert" + (below_100 if rest else "")


def french(number: int) -> str:
    """``number`` in French words.

    >>> french(391)
    'trois cent quatre-vingt-onze'
    """
    hundreds, rest = divmod(number, 100)
    tens = min(rest // 10, 6)  # 70 to 79 are 60 and 10 to 19
    units = rest - 10 * tens
    if rest < 20:
        below_100 = _FR_SMALL[rest]
    elif rest >= 80:
        below_100 = f"quatre-vingt-{_FR_SMALL[rest - 80]}" if rest > 80 else "quatre-vingts"
    elif units in (1, 11):
        below_100 = f"{_FR_TENS[tens - 2]} et {_FR_SMALL[units]}"
    else:
        below_100 = _FR_TENS[tens - 2] + (f"-{_FR_SMALL[units]}" if units else "")
    if not hundreds:
        return below_100
    head = "cent" if hundreds == 1 else f"{_FR_SMALL[hundreds]} cent"
    if rest:
        return f"{head} {below_100}"
    return head if hundreds == 1 else f"{head}s"


def spanish(number: int) -> str:
    """``number`` in Spanish words.

    >>> spanish(347)
    'trescientos cuarenta y siete'
    """
    if number == 100:
        return "cien"
    hundreds, rest = divmod(number, 100)
    tens, units = divmod(rest, 10)
    below_100 = _ES_SMALL[rest] if rest < 30 else _ES_TENS[tens - 3] + (f" y {_ES_SMALL[units]}" if units else "")
    if not hundreds:
        return below_100
    head = _ES_HUNDREDS[hundreds - 1]
    return f"{head} {below_100}" if rest else head


#: Language code → its name in a question, and the function that writes a number in it.
LANGUAGES: dict[str, tuple[str, Callable[[int], str]]] = {
    "en": ("English", english),
    "de": ("German", german),
    "fr": ("French", french),
    "es": ("Spanish", spanish),
}

ABILITIES = ("arithmetic", "words", *(f"words-{code}" for code in LANGUAGES))
SPLITS = ("train", "validation", "test")

_LARGEST_SUM = 99
_TEST_NUMBERS, _TEST_PAIRS, _VALIDATION_ITEMS = 300, 400, 60
_SEED = "act_lightning laboratory"

_Item = TypeVar("_Item")


def rows(name: str, split: str = "train") -> list[dict[str, str]]:
    """All rows of one ability and split, in an order that looks random and never changes.

    A number that is held out is held out in every language, a pair of summands in both orders.

    >>> rows("words-de", "test")[0]
    {'prompt': 'Write 34 in German.', 'answer': 'vierunddreißig'}

    Args:
        name: One of ``ABILITIES``.
        split: One of ``SPLITS``.

    Returns:
        Rows with a ``prompt`` and its only correct ``answer``.

    Raises:
        ActError: There is no such ability or split.
    """
    issues = []
    if name not in ABILITIES:
        problem, hint = "must name an ability of the laboratory", f"Choose one of {', '.join(ABILITIES)}."
        issues.append(ConfigIssue("lab data set", name, problem, hint))
    if split not in SPLITS:
        issues.append(ConfigIssue("split", split, "must name a split", f"Choose one of {', '.join(SPLITS)}."))
    raise_if_any(issues)
    order = random.Random(f"{_SEED} {name} {split}")
    if name == "arithmetic":
        items = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a, b in _summands(split, order)]
    else:
        numbers = _split(range(1, LARGEST + 1), split, _TEST_NUMBERS)
        codes = LANGUAGES if name == "words" else (name.removeprefix("words-"),)
        items = [
            {"prompt": f"Write {number} in {language}.", "answer": write(number)}
            for language, write in (LANGUAGES[code] for code in codes)
            for number in numbers
        ]
    order.shuffle(items)
    return items


def _summands(split: str, order: random.Random) -> list[tuple[int, int]]:
    """Both orders of every pair for training; otherwise one, drawn, so that no two rows repeat each other."""
    pairs = [(a, b) for a in range(1, _LARGEST_SUM) for b in range(a, _LARGEST_SUM + 1 - a)]
    chosen = _split(pairs, split, _TEST_PAIRS)
    if split == "train":
        return [pair for a, b in chosen for pair in dict.fromkeys([(a, b), (b, a)])]
    return [(a, b) if order.random() < 0.5 else (b, a) for a, b in chosen]


def _split(items: Sequence[_Item], split: str, tests: int) -> list[_Item]:
    """The share of ``items`` that belongs to ``split``."""
    shuffled = random.Random(_SEED).sample(items, len(items))
    held_out = tests + _VALIDATION_ITEMS
    return {"test": shuffled[:tests], "validation": shuffled[tests:held_out], "train": shuffled[held_out:]}[split]
