"""Extraction and comparison, against lm-evaluation-harness's own filters and metric on the same outputs."""

from __future__ import annotations

import random
from typing import Literal

import pytest

from act_lightning.data.ability_data import LANGUAGES, EvaluationData, math_pattern
from act_lightning.data.tasks import Item
from act_lightning.evaluation.grading import (
    first_match,
    grade,
    grade_choice,
    grade_number,
    last_choice,
    last_number,
    loose_match,
)

extraction = pytest.importorskip("lm_eval.filters.extraction")
metrics = pytest.importorskip("lm_eval.api.metrics")

OPTIONS = ["Gold", "gold ring", "An apple, red.", "½ of it"]
CHOICE = "(?<=The answer is )(.*)(?=.)"
FLEXIBLE_NUMBER = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
PIECES = [
    *("The answer is ", "答案是 ", "答えは", "です。", "입니다.", "답은 ", "Jibu ni ", "。", "answer: ", "Answer:  B"),
    *("18", "-5", "1,080", "$9.50", "3.5.", "...", "٤٧", "७", "x = 2", "(A)", "(B)", "(b)", "B", "C.", "(D).", "(Z)"),
    *("gold", "Gold", "gold ring", "an APPLE red", "½ of it", ",", " ", "\n", ".", "so ", ":"),
]


def outputs(count: int) -> list[str]:
    """Texts in which forms of answers meet in any order."""
    draw = random.Random(0)
    return ["", *("".join(draw.choices(PIECES, k=draw.randint(1, 9))) for _ in range(count))]


def or_invalid(found: str | None) -> str:
    return "[invalid]" if found is None else found


def is_match(prediction: str, reference: str) -> bool:
    score = metrics.exact_match_hf_evaluate([prediction], [reference], ignore_case=True, ignore_punctuation=True)
    return bool(score["exact_match"] == 1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_in_every_language(language: str) -> None:
    pattern = math_pattern(language)
    strict = extraction.RegexFilter(regex_pattern=pattern)
    flexible = extraction.RegexFilter(regex_pattern=FLEXIBLE_NUMBER, group_select=-1)
    for output in outputs(300):
        ((expected,),), ((last,),) = (chosen.apply([[output]], [{}]) for chosen in (strict, flexible))
        assert (or_invalid(first_match(pattern, output)), or_invalid(last_number(output))) == (expected, last)
        for reference in ("18", "1080", "9.50"):
            result = grade_number(output, reference, pattern)
            assert result.answered is (expected != "[invalid]")
            assert (result.correct, result.flexible_correct) == (
                is_match(expected, reference),
                is_match(last, reference),
            )


def test_choices() -> None:
    strict = extraction.RegexFilter(regex_pattern=CHOICE)
    flexible = extraction.MultiChoiceRegexFilter(r"(\([A-Z]\))", -1, ignore_case=True, ignore_punctuation=True)
    texts = outputs(600)
    lasts = flexible.apply([texts], [{"choices": OPTIONS}])[0]
    for output, last in zip(texts, lasts, strict=True):
        ((expected,),) = strict.apply([[output]], [{}])
        assert (or_invalid(first_match(CHOICE, output)), or_invalid(last_choice(output, OPTIONS))) == (
            expected,
            last,
        ), output
        result = grade_choice(output, "(B)", OPTIONS, CHOICE)
        assert (result.correct, result.flexible_correct) == (is_match(expected, "(B)"), is_match(last, "(B)"))
        assert result.answered or not result.correct
    assert {or_invalid(last_choice(output, OPTIONS)) for output in texts} >= {"(A)", "(B)", "(C)", "(D)", "[invalid]"}


def test_comparison_ignores_case_and_punctuation() -> None:
    for one in outputs(60):
        for other in ("18", "(B)", "gold"):
            assert loose_match(one, other) is is_match(one, other)


@pytest.mark.parametrize(
    ("language", "output"),
    [("en", r"So \boxed{18}."), ("zh", "答案是18。"), ("ja", "答えは 18 です。"), ("en", "The answer is $18.")],
)
def test_right_answers_without_the_phrase_that_no_prompt_asks_for_count(language: str, output: str) -> None:
    settings = EvaluationData("p", role="keep", kind="number", question="benchmax", language=language)
    item = Item("set.jsonl:1", [], "18")
    assert grade(item, settings, output).counts(settings.main_metric)
    settings.metric = "exact_match"
    assert not grade(item, settings, output).counts(settings.main_metric)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("number", "flexible_match"), ("choice", "flexible_match"), ("exact", "exact_match"), ("code", "exact_match")],
)
def test_the_metric_of_each_kind(kind: Literal["exact", "number", "choice", "code"], metric: str) -> None:
    assert EvaluationData("p", role="keep", kind=kind).main_metric == metric


def test_an_option_that_is_told_without_a_letter_is_no_answer_in_the_asked_form() -> None:
    result = grade_choice("The answer is gold ring.", "(B)", OPTIONS, CHOICE)
    assert (result.answered, result.correct, result.flexible_correct) == (False, False, True)
