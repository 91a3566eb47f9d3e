r"""Find the answer in what a model wrote: strictly, in the form that is asked for, and flexibly, wherever it may be.

The rules are BenchMAX's and thus lm-evaluation-harness's (``regex`` and ``multi_choice_regex`` of its filters,
https://github.com/EleutherAI/lm-evaluation-harness, version 0.4.13), to the letter: tests compare the two.
"""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache

_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LETTER = re.compile(r"(\([A-Z]\))")


def first_match(pattern: str, output: str) -> str | None:
    """The group of the first match of ``pattern``: the strict answer.

    >>> first_match(r"The answer is (-?[0-9.,]+)", "The answer is 1,080. The answer is 3")
    '1,080.'
    """
    found = re.search(pattern, output)
    return None if found is None else (found[1] or "").strip()


def last_number(output: str) -> str | None:
    """The last number in an output, with its separators and dollar sign: the flexible answer.

    >>> last_number("18 eggs make $9.50 a day")
    '$9.50'
    """
    found = _NUMBER.findall(output)
    return str(next(group for group in found[-1] if group)).strip() if found else None


def last_choice(output: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an output names last: the flexible answer.

    A letter in parentheses counts first, then an option's own text, case and punctuation aside, then a letter after a
    colon.

    >>> last_choice("(A)? No: (B).", ["iron", "gold"]), last_choice("It is Gold!", ["iron", "gold"])
    ('(B)', '(B)')
    >>> last_choice("Answer: A", ["iron", "gold"])
    '(A)'
    """
    if found := _LETTER.findall(output):
        return str(found[-1])
    letters = string.ascii_uppercase[: len(options)]
    by_text = {_plain(option.strip()): f"({letter})" for letter, option in zip(letters, options, strict=True)}
    longest_first = sorted(map(_plain, map(str.strip, options)), key=len, reverse=True)
    named = re.findall("|".join(map(re.escape, longest_first)), _plain(output))
    if named and (text := str(named[-1]).strip()):
        return by_text.get(text, text)
    after_colon = re.findall(rf":[\s]*({'|'.join(letters)})", output)
    return f"({after_colon[-1]})" if after_colon else None


@cache
def _punctuation() -> dict[int, None]:
    every = (character for character in range(sys.maxunicode) if unicodedata.category(chr(character)).startswith("P"))
    return dict.fromkeys(every)


def _plain(text: str) -> str:
    return text.lower().translate(_punctuation())
