"""What an evaluation set says to the model, and the pattern that finds an answer in its output."""

from __future__ import annotations

import re
from collections.abc import Mapping

from act_lightning.data import benchmax
from act_lightning.data.ability_data import EvaluationData
from act_lightning.errors import ConfigIssue

BENCHMAX = "benchmax"
_FIELD = re.compile(r"\{(prompt|options)\}")
_PLAIN = {"exact": "{prompt}", "number": "{prompt}", "code": "{prompt}", "choice": "{prompt}\n{options}"}
_PATTERNS = {
    "number": r"The answer is (\-?[0-9\.\,]+)",
    "choice": r"(?<=The answer is )(.*)(?=.)",
}
"""BenchMAX's strict patterns for English."""


def question_issues(settings: EvaluationData, where: str) -> list[ConfigIssue]:
    """What is wrong with the settings of one evaluation set that decide how it asks and what it takes for an answer.

    Args:
        settings: The settings of one evaluation set.
        where: Its place in the config, such as ``data.evaluations.math-sw``.
    """
    issues = _wording_issues(settings, where) + _pattern_issues(settings, where)
    if (settings.kind == "choice") is not bool(settings.incorrect):
        problem = "must name the columns of wrong options where kind is choice, and nothing elsewhere"
        hint = "Write, for example, incorrect: [Incorrect Answer 1, Incorrect Answer 2, Incorrect Answer 3]."
        issues.append(ConfigIssue(f"{where}.incorrect", settings.incorrect, problem, hint))
    if settings.kind == "code" and not settings.allow_code_execution:
        problem = (
            "must be true where kind is code: what the model wrote is run, in a process without network and rights"
        )
        hint = "Set it on a machine where that may be done."
        issues.append(ConfigIssue(f"{where}.allow_code_execution", False, problem, hint))
    return issues


def _wording_issues(settings: EvaluationData, where: str) -> list[ConfigIssue]:
    if settings.question == BENCHMAX:
        if settings.kind == "exact":
            hint = "Choose number, choice or code, or write the question as text."
            return [ConfigIssue(f"{where}.kind", settings.kind, "must be a kind that BenchMAX has", hint)]
        if settings.kind != "code" and settings.language not in benchmax.LANGUAGES:
            problem = f"must be one of {', '.join(benchmax.LANGUAGES)} where question is {BENCHMAX}"
            return [ConfigIssue(f"{where}.language", settings.language, problem, "Name the language of the set.")]
        return []
    needed = set(_FIELD.findall(_PLAIN[settings.kind]))
    if settings.question is None or set(_FIELD.findall(settings.question)) == needed:
        return []
    problem = f"must be {BENCHMAX}, or text that contains {' and '.join(f'{{{name}}}' for name in sorted(needed))}"
    return [ConfigIssue(f"{where}.question", settings.question, problem, "Write each of them where it belongs.")]


def _pattern_issues(settings: EvaluationData, where: str) -> list[ConfigIssue]:
    if settings.pattern is None:
        return []
    setting, hint = f"{where}.pattern", r"Write, for example, Answer: (\-?[0-9.,]+)."
    if settings.kind not in _PATTERNS:
        problem = f"has no meaning where kind is {settings.kind}"
        return [ConfigIssue(setting, settings.pattern, problem, "Leave it out.")]
    try:
        groups = re.compile(settings.pattern).groups
    except re.error as error:
        return [ConfigIssue(setting, settings.pattern, f"must be a regular expression ({error})", hint)]
    if groups == 1:
        return []
    return [ConfigIssue(setting, settings.pattern, "must have one group, which is the answer", hint)]


def question_wording(settings: EvaluationData) -> str:
    """The user's turn, with ``{prompt}``, and ``{options}`` where there are some."""
    if settings.question != BENCHMAX:
        return settings.question or _PLAIN[settings.kind]
    if settings.kind == "code":
        return _PLAIN["code"]
    ask = benchmax.math_question if settings.kind == "number" else benchmax.science_question
    return ask(settings.language or "")


def strict_pattern(settings: EvaluationData) -> str | None:
    """The pattern whose one group is the answer; ``None`` where the whole output is."""
    if settings.pattern is None and settings.question == BENCHMAX and settings.kind == "number":
        return benchmax.math_pattern(settings.language or "")
    return settings.pattern or _PATTERNS.get(settings.kind)


def filled(text: str, fields: Mapping[str, str]) -> str:
    """``text`` with fields in their places; braces within a field's own text stay.

    >>> filled("{prompt} {other}", {"prompt": "Is {options} a set?"})
    'Is {options} a set? {other}'
    """
    return _FIELD.sub(lambda field: fields.get(field[1], field[0]), text)


def can_match(pattern: str, key: str) -> bool:
    r"""Whether the group of ``pattern`` can be ``key``.

    >>> can_match(r"答案是 (\-?[0-9\.\,]+)。", "1,080"), can_match(r"The answer is (\-?[0-9\.\,]+)", "a dozen")
    (True, False)
    """
    return re.fullmatch(_group(pattern), key) is not None


def _group(pattern: str) -> str:
    """The text of a pattern's one capturing group."""
    opened: list[int] = []
    for part in re.finditer(r"\\.|\[(?:\\.|[^\]\\])*\]|\((?:\?P<\w+>)?(\?)?|\)", pattern, re.DOTALL):
        if part[0].startswith("("):
            opened.append(-1 if part[1] else part.end())
        elif part[0] == ")" and (start := opened.pop()) >= 0:
            return pattern[start : part.start()]
    return pattern
