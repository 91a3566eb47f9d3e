"""How a number from 0 to 999 is written in English, German, French and Spanish.

Spellings: "and" in English ("one hundred and one"), "ein" before "hundert" in German, no hyphen around "cent" and
"et" in French (the spelling before 1990).
"""

from __future__ import annotations

from collections.abc import Callable

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
    if not hundreds:
        return _english_below_100(rest)
    head = f"{_EN_SMALL[hundreds]} hundred"
    return f"{head} and {_english_below_100(rest)}" if rest else head


def _english_below_100(number: int) -> str:
    if number < 20:
        return _EN_SMALL[number]
    tens, units = divmod(number, 10)
    return f"{_EN_TENS[tens - 2]}-{_EN_SMALL[units]}" if units else _EN_TENS[tens - 2]


def german(number: int) -> str:
    """``number`` in German words.

    >>> german(347)
    'dreihundertsiebenundvierzig'
    """
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _german_below_100(rest)
    head = f"{_german_stem(hundreds)}hundert"
    return head + _german_below_100(rest) if rest else head


def _german_below_100(number: int) -> str:
    if number < 20:
        return _DE_SMALL[number]
    tens, units = divmod(number, 10)
    return f"{_german_stem(units)}und{_DE_TENS[tens - 2]}" if units else _DE_TENS[tens - 2]


def _german_stem(digit: int) -> str:
    return "ein" if digit == 1 else _DE_SMALL[digit]


def french(number: int) -> str:
    """``number`` in French words.

    >>> french(391)
    'trois cent quatre-vingt-onze'
    """
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _french_below_100(rest)
    head = "cent" if hundreds == 1 else f"{_FR_SMALL[hundreds]} cent"
    if rest:
        return f"{head} {_french_below_100(rest)}"
    return head if hundreds == 1 else f"{head}s"


def _french_below_100(number: int) -> str:
    if number < 20:
        return _FR_SMALL[number]
    if number >= 80:
        return f"quatre-vingt-{_FR_SMALL[number - 80]}" if number > 80 else "quatre-vingts"
    tens, units = min(number // 10, 6), number - 10 * min(number // 10, 6)
    if units in (1, 11):
        return f"{_FR_TENS[tens - 2]} et {_FR_SMALL[units]}"
    return f"{_FR_TENS[tens - 2]}-{_FR_SMALL[units]}" if units else _FR_TENS[tens - 2]


def spanish(number: int) -> str:
    """``number`` in Spanish words.

    >>> spanish(347)
    'trescientos cuarenta y siete'
    """
    hundreds, rest = divmod(number, 100)
    if number == 100:
        return "cien"
    if not hundreds:
        return _spanish_below_100(rest)
    head = _ES_HUNDREDS[hundreds - 1]
    return f"{head} {_spanish_below_100(rest)}" if rest else head


def _spanish_below_100(number: int) -> str:
    if number < 30:
        return _ES_SMALL[number]
    tens, units = divmod(number, 10)
    return f"{_ES_TENS[tens - 3]} y {_ES_SMALL[units]}" if units else _ES_TENS[tens - 3]


#: Language code → its name in a question, and the function that writes a number in it.
LANGUAGES: dict[str, tuple[str, Callable[[int], str]]] = {
    "en": ("English", english),
    "de": ("German", german),
    "fr": ("French", french),
    "es": ("Spanish", spanish),
}
