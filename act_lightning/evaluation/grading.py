"""Whether an output answers its question correctly: extract the answer and compare it, by kind of answer."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from act_lightning.data.ability_data import NAMESPACES, EvaluationData, Metric, strict_pattern
from act_lightning.data.tasks import Item
from act_lightning.evaluation.sandbox import assemble_program, defines_function, passes_tests

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LETTER = re.compile(r"(\([A-Z]\))")


@dataclass(frozen=True)
class Grade:
    """What was read in an output, and whether it is correct.

    Attributes:
        extracted: The answer in the required form; ``None`` where the output has none.
        flexible: The answer anywhere in the output; ``None`` where there is none.
        answered: Whether the output has an answer in the required form.
        correct: Whether ``extracted`` is correct.
        flexible_correct: Whether ``flexible`` is correct.
    """

    extracted: str | None
    flexible: str | None
    answered: bool
    correct: bool
    flexible_correct: bool

    def counts(self, metric: Metric) -> bool:
        """Whether the output is correct by a metric."""
        return self.flexible_correct if metric == "flexible_match" else self.correct


def grade(item: Item, settings: EvaluationData, output: str) -> Grade:
    """Grade an output by the kind of answer of its evaluation set."""
    pattern = strict_pattern(settings)
    if settings.kind == "choice" and pattern:
        return grade_choice(output, item.reference, item.options, pattern)
    if settings.kind == "number" and pattern:
        return grade_number(output, item.reference, pattern)
    if item.program:
        program = item.program
        return grade_code(output, program.prompt, program.test, program.entry_point, settings.sandbox)
    return grade_exact(output, item.reference)


def grade_exact(output: str, reference: str) -> Grade:
    """The whole output is the answer; the flexible match ignores case and punctuation.

    >>> grade_exact("Einundzwanzig.", "einundzwanzig").flexible_correct
    True
    """
    answer = " ".join(output.split())
    flexible = loose_match(answer, " ".join(reference.split()))
    return Grade(answer, answer, bool(answer), exact_match(output, reference), flexible)


def grade_number(output: str, reference: str, pattern: str) -> Grade:
    r"""The answer is the group of the first match of ``pattern``; the flexible answer is the last number.

    >>> result = grade_number("The answer is 9. No, 10.", "10", r"The answer is (\-?[0-9\.\,]+)")
    >>> result.extracted, result.correct, result.flexible, result.flexible_correct
    ('9.', False, '10.', True)
    """
    strict, last = first_match(pattern, output), last_number(output)
    return Grade(strict, last, strict is not None, loose_match(strict, reference), loose_match(last, reference))


def grade_choice(output: str, reference: str, options: Sequence[str], pattern: str) -> Grade:
    """The answer is the option's letter in the first match of ``pattern``; flexibly, the option that is named last.

    >>> result = grade_choice("The answer is (B).", "(B)", ["iron", "gold"], "(?<=The answer is )(.*)(?=.)")
    >>> result.extracted, result.correct
    ('(B)', True)
    """
    strict, last = first_match(pattern, output), last_choice(output, options)
    letters = string.ascii_uppercase[: len(options)]
    answered = any(loose_match(strict, letter) for letter in letters)
    return Grade(strict, last, answered, loose_match(strict, reference), loose_match(last, reference))


def grade_code(
    output: str, prompt: str, test: str, entry_point: str, sandbox: str | Sequence[str] = NAMESPACES
) -> Grade:
    """The answer is the function that the output completes or defines; it is correct if it passes its tests.

    There is only one way to read code, so the strict and the flexible result are the same.
    """
    code = assemble_program(prompt, output, entry_point)
    answered = defines_function(code, entry_point)
    correct = answered and passes_tests(code, test, entry_point, sandbox=sandbox)
    return Grade(code, code, answered, correct, correct)


def exact_match(prediction: str, reference: str) -> bool:
    """Whether two answers are the same string, apart from white space at the ends and the length of runs of it.

    >>> exact_match(" trois cent   un ", "trois cent un"), exact_match("47.", "47")
    (True, False)
    """
    return prediction.split() == reference.split()


def loose_match(prediction: str | None, reference: str) -> bool:
    """Whether there is an answer that equals the reference except for case and ASCII punctuation, as in BenchMAX.

    Thousands separators, currency signs and trailing periods are ignored. So are signs and decimal points, which no
    answer in MGSM has. Digits of other scripts are different characters.

    >>> loose_match("$1,080.", "1080"), loose_match("(b)", "(B)"), loose_match("١٨", "18"), loose_match(None, "18")
    (True, True, False, False)
    """
    if prediction is None:
        return False
    return prediction.lower().translate(_NO_PUNCTUATION) == reference.lower().translate(_NO_PUNCTUATION)


def first_match(pattern: str, output: str) -> str | None:
    """The group of the first match of ``pattern``: the strict answer.

    >>> first_match(r"The answer is (-?[0-9.,]+)", "The answer is 1,080. The answer is 3")
    '1,080.'
    """
    match = re.search(pattern, output)
    return None if match is None else (match[1] or "").strip()


def last_number(output: str) -> str | None:
    """The last number in an output, with its separators and dollar sign: the flexible answer.

    >>> last_number("18 eggs make $9.50 a day")
    '$9.50'
    """
    matches = _NUMBER.findall(output)
    return str(next(group for group in matches[-1] if group)).strip() if matches else None


def last_choice(output: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an output names last: the flexible answer.

    Letters in parentheses take precedence, then the texts of options without case and punctuation, then letters after a
    colon.

    >>> last_choice("(A)? No: (B).", ["iron", "gold"]), last_choice("It is Gold!", ["iron", "gold"])
    ('(B)', '(B)')
    >>> last_choice("Answer: A", ["iron", "gold"])
    '(A)'
    """
    if in_parentheses := _LETTER.findall(output):
        return str(in_parentheses[-1])
    letters = string.ascii_uppercase[: len(options)]
    letter_by_text = {_plain(text.strip()): f"({letter})" for letter, text in zip(letters, options, strict=True)}
    longest_first = sorted((_plain(text.strip()) for text in options), key=len, reverse=True)
    texts = re.findall("|".join(map(re.escape, longest_first)), _plain(output))
    if texts and (text := str(texts[-1]).strip()):
        return letter_by_text.get(text, text)
    after_colon = re.findall(rf":[\s]*({'|'.join(letters)})", output)
    return f"({after_colon[-1]})" if after_colon else None


def _plain(text: str) -> str:
    """``text`` in lower case, without any Unicode punctuation."""
    return "".join(letter for letter in text.lower() if not unicodedata.category(letter).startswith("P"))


def can_identify_language() -> bool:
    """Whether the extra ``act-lightning[language]`` is installed: py3langid (BSD, 97 languages, works offline)."""
    return find_spec("py3langid") is not None


def identify_language(text: str) -> str | None:
    """The language of ``text`` as its ISO 639-1 code, such as ``sw``; ``None`` if it has no letters.

    >>> identify_language("12 + 30 = 42") is None
    True
    """
    if not any(character.isalpha() for character in text):
        return None
    import py3langid  # an optional dependency

    return str(py3langid.classify(text)[0])
