"""Whether an output answers its question rightly: find the answer, compare it, by kind of answer."""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from act_lightning.evaluation.code import completed, defines, passes_tests

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, reference: str) -> bool:
    """Whether two answers are the same string, outer white space aside and inner runs of it taken as one space.

    >>> exact_match(" trois cent   un ", "trois cent un"), exact_match("47.", "47")
    (True, False)
    """
    return prediction.split() == reference.split()


def loose_match(prediction: str, reference: str) -> bool:
    """Whether two answers are the same but for case and ASCII punctuation, as BenchMAX compares them.

    So thousands' separators, a currency sign and a trailing period play no part; nor do a sign and a decimal point,
    which no answer of MGSM has. Digits of other scripts are other characters.

    >>> loose_match("$1,080.", "1080"), loose_match("(b)", "(B)"), loose_match("١٨", "18")
    (True, True, False)
    """
    return _bare(prediction) == _bare(reference)


def _bare(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


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


@dataclass(frozen=True)
class Grade:
    """What an output was taken for.

    Attributes:
        extracted: The answer in the asked form; ``None`` where the output has none.
        flexible: The answer wherever it may be; ``None`` where the output has none.
        answered: Whether the output has an answer in the asked form.
        correct: Whether ``extracted`` is right.
        flexible_correct: Whether ``flexible`` is right.
    """

    extracted: str | None
    flexible: str | None
    answered: bool
    correct: bool
    flexible_correct: bool


def grade_exact(output: str, reference: str) -> Grade:
    """The whole output is the answer; flexibly, case and punctuation aside.

    >>> grade_exact("Einundzwanzig.", "einundzwanzig").flexible_correct
    True
    """
    words = " ".join(output.split())
    flexible = loose_match(words, " ".join(reference.split()))
    return Grade(words, words, bool(words), exact_match(output, reference), flexible)


def grade_number(output: str, reference: str, pattern: str) -> Grade:
    r"""The group of the first match of ``pattern``; flexibly, the last number.

    >>> verdict = grade_number("The answer is 9. No, 10.", "10", r"The answer is (\-?[0-9\.\,]+)")
    >>> verdict.extracted, verdict.correct, verdict.flexible, verdict.flexible_correct
    ('9.', False, '10.', True)
    """
    strict, last = first_match(pattern, output), last_number(output)
    return Grade(strict, last, strict is not None, _same(strict, reference), _same(last, reference))


def grade_choice(output: str, reference: str, options: Sequence[str], pattern: str) -> Grade:
    """The group of the first match of ``pattern``, which must name an option's letter; flexibly, the option named last.

    >>> verdict = grade_choice("The answer is (B).", "(B)", ["iron", "gold"], "(?<=The answer is )(.*)(?=.)")
    >>> verdict.extracted, verdict.correct
    ('(B)', True)
    """
    strict, last = first_match(pattern, output), last_choice(output, options)
    letters = [chr(ord("A") + place) for place in range(len(options))]
    answered = strict is not None and any(loose_match(strict, letter) for letter in letters)
    return Grade(strict, last, answered, _same(strict, reference), _same(last, reference))


def grade_code(output: str, prompt: str, test: str, entry_point: str) -> Grade:
    """The function that the output completes or defines; right if it passes its tests, run in a process of its own.

    There is one way to read code: strict and flexible verdict are the same.
    """
    code = completed(prompt, output, entry_point)
    answered = defines(code, entry_point)
    right = answered and passes_tests(code, test, entry_point)
    return Grade(code, code, answered, right, right)


def _same(answer: str | None, reference: str) -> bool:
    return answer is not None and loose_match(answer, reference)
