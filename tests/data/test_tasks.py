"""What evaluation sets ask, and what they take for a right answer: rows as BenchMAX has them, and bad ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from act_lightning.data.ability_data import LANGUAGES, EvaluationData, question_issues, strict_pattern
from act_lightning.data.tasks import Item, can_match, read_items, read_prompts
from act_lightning.errors import ActError
from tests.tiny import write_jsonl

MATH = {"question": "Ann has 2 hens. How many?", "answer": None, "answer_number": 1080}
INCORRECT = ["Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]
SCIENCE = {
    "Question": "What shines?",
    "Correct Answer": " gold [title] ring ",
    **dict(zip(INCORRECT, "abc", strict=True)),
}
CODE = {"prompt": '\ndef one():\n    """One."""\n', "canonical_solution": "    return 1\n", "entry_point": "one"}
SETTINGS: dict[str, dict[str, Any]] = {
    "number": {"columns": {"prompt": "question", "answer": "{answer_number}"}},
    "choice": {"columns": {"prompt": "Question", "answer": "Correct Answer"}, "incorrect": INCORRECT},
    "code": {"columns": {"prompt": "prompt", "answer": "canonical_solution"}, "allow_code_execution": True},
}


def items(folder: Path, kind: str, *rows: Mapping[str, Any], **settings: Any) -> list[Item]:
    path = write_jsonl(folder / "set.jsonl", rows)
    given = {"language": "en", "question": "benchmax"} | SETTINGS.get(kind, {}) | settings
    return read_items(EvaluationData(str(path), role="keep", kind=kind, **given), "data.evaluations.set")  # type: ignore[arg-type]


def test_mathematics_as_benchmax_asks_it(tmp_path: Path) -> None:
    (one,) = items(tmp_path, "number", MATH)
    assert one.messages[-2]["content"] == "Question: Ann has 2 hens. How many?\nStep-by-Step Answer:"
    assert one.reference == "1080"
    (one,) = items(tmp_path, "number", MATH, language="ja")
    assert one.messages[-2]["content"] == "問題: Ann has 2 hens. How many?\nステップごとの答え:"


def test_science_as_benchmax_asks_it(tmp_path: Path) -> None:
    (one,) = items(tmp_path, "choice", SCIENCE, language="sw")
    lines = one.messages[-2]["content"].split("\n")
    assert lines[:2] == ["Je, ni jibu gani sahihi kwa swali hili: What shines?", "Chaguo: "]
    assert lines[-1] == "Wacha tufikirie hatua kwa hatua: "
    shown = [line[4:] for line in lines[2:6]]
    assert [line[:4] for line in lines[2:6]] == ["(A) ", "(B) ", "(C) ", "(D) "]
    assert sorted(shown) == ["a", "b", "c", "gold.  ring".replace("  ", " ")]
    assert one.options == tuple(shown)
    assert one.reference == f"({'ABCD'[shown.index('gold. ring')]})"


def test_code_as_benchmax_asks_it(tmp_path: Path) -> None:
    (one,) = items(tmp_path, "code", CODE | {"test": "def check(candidate):\n    assert candidate() == 1\n"})
    assert one.messages[-2]["content"] == 'def one():\n    """One."""\n'
    assert one.program is not None
    assert one.program.prompt == one.messages[-2]["content"]


@pytest.mark.parametrize("inputs", ["[[1.0], [2.0]]", [[1.0], [2.0]]])
def test_code_with_inputs_is_tested_against_its_own_solution(tmp_path: Path, inputs: object) -> None:
    from act_lightning.evaluation.grading import grade_code

    row = {"prompt": "def third(x):\n", "canonical_solution": "    return x / 3\n", "entry_point": "third"}
    (one,) = items(tmp_path, "code", row | {"base_input": inputs, "atol": 0})
    assert one.program is not None
    verdicts = {
        body: grade_code(f"    return {body}\n", one.program.prompt, one.program.test, "third").correct
        for body in ("x * (1 / 3)", "x / 3 + 1e-4", "[x / 3]")
    }
    assert verdicts == {"x * (1 / 3)": True, "x / 3 + 1e-4": False, "[x / 3]": False}


def test_the_order_of_options_belongs_to_the_row(tmp_path: Path) -> None:
    rows = [SCIENCE | {"Question": f"Question {number}"} for number in range(40)]
    every, last = items(tmp_path, "choice", *rows), items(tmp_path, "choice", rows[-1])
    assert every[-1].options == last[0].options
    counts = {letter: sum(one.reference == f"({letter})" for one in every) for letter in "ABCD"}
    assert min(counts.values()) >= 4, "and is no fixed order"


def test_identity_is_of_what_is_asked(tmp_path: Path) -> None:
    first, again, other = items(tmp_path, "number", MATH, MATH, MATH | {"answer_number": 3})
    assert first.identity == again.identity != other.identity


def test_options_that_cleaning_makes_alike_are_flagged(tmp_path: Path) -> None:
    rows = SCIENCE | {"Incorrect Answer 1": "bicyclo[2.2.1]heptane", "Incorrect Answer 2": "bicyclo[3.1.1]heptane"}
    (one,) = items(tmp_path, "choice", rows)
    assert one.flag == "options look alike"


def test_a_set_in_words_of_its_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", [{"prompt": "Is {options} text?", "answer": "yes", "no": "no"}])
    own = "Q: {prompt}\n{options}\nA:"
    settings = EvaluationData(
        str(path), role="keep", kind="choice", incorrect=["no"], question=own, template="{prompt}"
    )
    (prompt,) = read_prompts("own", settings, tokenizer, "chat")
    assert prompt.text == "Q: Is {options} text?\n(A) yes\n(B) no\nA:" or prompt.text.endswith("(A) no\n(B) yes\nA:")


@pytest.mark.parametrize(
    ("kind", "row", "problem"),
    [
        ("number", MATH | {"answer_number": "a dozen"}, "answer = 'a dozen': must be something that the group of"),
        ("number", MATH | {"answer_number": ""}, "must end with a reference answer"),
        ("choice", SCIENCE | {"Incorrect Answer 2": "a"}, "none of them twice"),
        ("choice", SCIENCE | {"Incorrect Answer 2": "gold [title] ring"}, "none of them twice"),
        ("choice", SCIENCE | {"Incorrect Answer 2": None}, "Incorrect Answer 2 = None: must be text"),
        ("choice", {k: v for k, v in SCIENCE.items() if "2" not in k}, "is missing: the row has Question"),
        ("code", CODE, "must be there, or base_input"),
        ("code", CODE | {"base_input": "[1]"}, "must be there, or base_input"),
        ("code", CODE | {"base_input": "[["}, "must be there, or base_input"),
        ("code", CODE | {"test": "def check(c): ...", "entry_point": None}, "must name the function"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, kind: str, row: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(ActError, match=r"set\.jsonl:1") as raised:
        items(tmp_path, kind, row)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"kind": "number", "question": "benchmax"}, "language"),
        ({"kind": "number", "question": "benchmax", "language": "de"}, "language"),
        ({"kind": "exact", "question": "benchmax"}, "kind"),
        ({"kind": "number", "question": "Answer this:"}, "question"),
        ({"kind": "choice", "incorrect": ["a"], "question": "{prompt}"}, "question"),
        ({"kind": "choice"}, "incorrect"),
        ({"kind": "number", "incorrect": ["a"]}, "incorrect"),
        ({"kind": "number", "pattern": "Answer: [0-9]+"}, "pattern"),
        ({"kind": "number", "pattern": "Answer: ([0-9]+"}, "pattern"),
        ({"kind": "code", "allow_code_execution": True, "pattern": "(.*)"}, "pattern"),
        ({"kind": "code"}, "allow_code_execution"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], setting: str) -> None:
    issues = question_issues(EvaluationData("set.jsonl", role="keep", **settings), "data.evaluations.set")
    assert [issue.setting for issue in issues] == [f"data.evaluations.set.{setting}"]


@pytest.mark.parametrize(
    ("pattern", "key", "can"),
    [
        (r"A (?:is|was) (?P<it>\d+)\)", "12", True),
        (r"[(] (\d+)", "12", True),
        (r"\( ([a-z]+)", "12", False),
        (r"(?<=x)((?:a|b)+)(?=.)", "abba", True),
    ],
)
def test_keys_against_patterns(pattern: str, key: str, can: bool) -> None:
    assert can_match(pattern, key) is can


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_pattern_takes_the_keys_of_mgsm(language: str) -> None:
    settings = EvaluationData("set.jsonl", role="keep", kind="number", question="benchmax", language=language)
    assert not question_issues(settings, "set")
    pattern = strict_pattern(settings)
    assert pattern is not None
    assert all(can_match(pattern, key) for key in ("3", "1,080", "-5", "0.5"))
