"""Whether an output answers its question rightly, by kind of answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from act_lightning.evaluation.code import completed, defines
from act_lightning.evaluation.extraction import first_match, last_choice, last_number
from act_lightning.evaluation.sameness import exact_match, loose_match
from act_lightning.evaluation.sandbox import passes


@dataclass(frozen=True)
class Verdict:
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


def judge_exact(output: str, reference: str) -> Verdict:
    """The whole output is the answer; flexibly, case and punctuation aside.

    >>> judge_exact("Einundzwanzig.", "einundzwanzig").flexible_correct
    True
    """
    words = " ".join(output.split())
    flexible = loose_match(words, " ".join(reference.split()))
    return Verdict(words, words, bool(words), exact_match(output, reference), flexible)


def judge_number(output: str, reference: str, pattern: str) -> Verdict:
    r"""The group of the first match of ``pattern``; flexibly, the last number.

    >>> verdict = judge_number("The answer is 9. No, 10.", "10", r"The answer is (\-?[0-9\.\,]+)")
    >>> verdict.extracted, verdict.correct, verdict.flexible, verdict.flexible_correct
    ('9.', False, '10.', True)
    """
    strict, last = first_match(pattern, output), last_number(output)
    return Verdict(strict, last, strict is not None, _same(strict, reference), _same(last, reference))


def judge_choice(output: str, reference: str, options: Sequence[str], pattern: str) -> Verdict:
    """The group of the first match of ``pattern``, which must name an option's letter; flexibly, the option named last.

    >>> verdict = judge_choice("The answer is (B).", "(B)", ["iron", "gold"], "(?<=The answer is )(.*)(?=.)")
    >>> verdict.extracted, verdict.correct
    ('(B)', True)
    """
    strict, last = first_match(pattern, output), last_choice(output, options)
    letters = [chr(ord("A") + place) for place in range(len(options))]
    answered = strict is not None and any(loose_match(strict, letter) for letter in letters)
    return Verdict(strict, last, answered, _same(strict, reference), _same(last, reference))


def judge_code(output: str, prompt: str, test: str, entry_point: str) -> Verdict:
    """The function that the output completes or defines; right if it passes its tests, run in a process of its own.

    There is one way to read code: strict and flexible verdict are the same.
    """
    code = completed(prompt, output, entry_point)
    answered = defines(code, entry_point)
    right = answered and passes(code, test, entry_point)
    return Verdict(code, code, answered, right, right)


def _same(answer: str | None, reference: str) -> bool:
    return answer is not None and loose_match(answer, reference)
