"""The settings of one data set, an entry of ``data.abilities`` or ``data.evaluations``, and the questions they pose.

BenchMAX's words are copied literally from https://github.com/CONE-MT/BenchMAX at commit
d509bfdefa43fc8cb32045c98642d709fad56e3a (MIT), ``tasks/mgsm`` and ``tasks/gpqa``; there at most 1,024 new tokens are
generated for mathematics and 2,048 for science. Code follows its evalplus fork (https://github.com/xuuHuang/evalplus,
commit beb1ee792b6018231512ea7cdc850180fde8545c): a model without chat template completes the function, with at most
768. Paper of the benchmark: https://arxiv.org/abs/2502.07346.

Two of its quirks are kept, for comparable numbers: Bengali answers to mathematics are looked for in English, and no
prompt mentions the form, such as ``The answer is (B)``, that the strict pattern requires. So the answer anywhere in the
output is what counts by default.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from act_lightning.errors import ConfigIssue

BENCHMAX = "benchmax"
NAMESPACES, PROCESS = "namespaces", "process"
Metric = Literal["exact_match", "flexible_match"]
LANGUAGES = ("en", "zh", "ar", "bn", "hu", "ja", "ko", "sw", "te", "th", "vi")

# What stands before the question, what stands after it, and the strict pattern.
_MATH = {
    "en": ("Question:", "Step-by-Step Answer:", r"The answer is (\-?[0-9\.\,]+)"),
    "zh": ("问题:", "逐步解答:", r"答案是 (\-?[0-9\.\,]+)。"),
    "ar": ("السؤال:", "الإجابة خطوة بخطوة:", r"الإجابة هي (\-?[0-9\.\,]+)"),
    "bn": ("প্রশ্ন:", "ধাপে ধাপে উত্তর:", r"The answer is (\-?[0-9\.\,]+)"),
    "hu": ("Kérdés:", "Válasz lépésről lépésre:", r"A válasz (\-?[0-9\.\,]+)"),
    "ja": ("問題:", "ステップごとの答え:", r"答えは(\-?[0-9\.\,]+)です。"),
    "ko": ("질문:", "단계별 답변:", r"답은 (\-?[0-9\.\,]+)입니다\."),
    "sw": ("Swali:", "Jibu la Hatua kwa Hatua:", r"Jibu ni (\-?[0-9\.\,]+)"),
    "te": ("ప్రశ్న:", "దశలవారీగా సమాధానం:", r"సమాధానం (\-?[0-9\.\,]+)"),
    "th": ("โจทย์:", "คำตอบทีละขั้นตอน:", r"คำตอบคือ (\-?[0-9\.\,]+)"),
    "vi": ("Câu hỏi:", "Câu trả lời từng bước:", r"Câu trả lời là (\-?[0-9\.\,]+)"),
}
# What stands before the question, before the options, and after them.
_SCIENCE = {
    "en": ("What is the correct answer to this question:", "Choices:", "Let's think step by step: "),
    "zh": ("这个问题的正确答案是什么:", "选项:", "我们来一步步思考一下: "),
    "ar": ("ما هي الإجابة الصحيحة لهذا السؤال: ", "الخيارات:", "لنفكر خطوة بخطوة: "),
    "bn": ("এই প্রশ্নের সঠিক উত্তর কি: ", "পছন্দ:", "আসুন ধাপে ধাপে চিন্তা করি: "),
    "hu": ("Mi a helyes válasz erre a kérdésre: ", "Választási lehetőségek:", "Gondoljuk végig lépésről lépésre: "),
    "ja": ("この質問の正しい答えは何ですか: ", "選択肢:", "ステップごとに考えてみましょう: "),
    "ko": ("이 질문에 대한 정답은 무엇입니까? ", "선택지:", "단계별로 생각해 보겠습니다: "),
    "sw": ("Je, ni jibu gani sahihi kwa swali hili: ", "Chaguo: ", "Wacha tufikirie hatua kwa hatua: "),
    "te": ("ఈ ప్రశ్నకు సరైన సమాధానం ఏమిటి: ", "ఎంపికలు:", "దశలవారీగా ఆలోచిద్దాం: "),
    "th": ("คำตอบที่ถูกต้องสำหรับคำถามนี้คืออะไร: ", "ตัวเลือก:", "มาคิดทีละขั้นตอนกัน: "),
    "vi": ("Câu trả lời đúng cho câu hỏi này là gì: ", "Các lựa chọn:", "Chúng ta hãy suy nghĩ từng bước một: "),
}
_FIELD = re.compile(r"\{(prompt|options)\}")
_PLAIN = {"exact": "{prompt}", "number": "{prompt}", "code": "{prompt}", "choice": "{prompt}\n{options}"}
_PATTERNS = {
    "number": r"The answer is (\-?[0-9\.\,]+)",
    "choice": r"(?<=The answer is )(.*)(?=.)",
}
"""BenchMAX's strict patterns for English."""


@dataclass
class PerGroup:
    """The same number of rows from each of several groups, such as 500 each of three subjects.

    Attributes:
        column: Column that names a row's group.
        limit: Take this many of the first rows of each group, after ``filter`` and shuffle.
        groups: The groups, compared as text; rows of others are left out, and one of them with too few rows is an
            error. ``None`` takes every group there is, each with as many rows as it has.
        skip: Leave out this many of each group's rows first.
    """

    column: str
    limit: int
    groups: list[str] | None = None
    skip: int = 0


@dataclass
class AbilityData:
    r"""Where the rows of one ability come from, and which of them are used.

    The order is always ``filter``, shuffle, ``per_group``, ``skip``, ``limit``.

    Attributes:
        path: A JSONL, JSON, CSV or Parquet file, or a pattern such as ``data/*.jsonl`` that names several, read in the
            order of their names; a folder written by ``save_to_disk``; a hub id such as ``meta-math/MetaMathQA``; or
            ``lab:<name>``.
        name: Configuration of a hub data set.
        split: Split of a hub data set, of a saved folder or of the laboratory.
        revision: Commit, branch or tag of a hub data set.
        streaming: Read a hub data set while it is downloaded, and keep nothing of it on disk.
        columns: Our name of a column to the data set's name of it, such as ``{prompt: query, answer: response}``. A
            value with braces is a text made from columns: ``"{question}\n{context}"``, with ``{{`` and ``}}`` for
            braces of its own.
        filter: A condition on a column, or a list of conditions that must all hold: ``subject == physics``,
            ``subject != physics``, ``subject in [physics, chemistry]``, ``subject not in [physics, chemistry]``, all
            compared as text, or ``score >= 0.5`` with any of ``< <= > >=``, compared as numbers.
        shuffle_seed: Seed of a shuffle after ``filter``; ``None`` keeps the order.
        per_group: The same number of rows from each group.
        skip: Leave out this many of the first rows, so that two sets share none.
        limit: Take this many of the first rows.
        template: Template of this ability; ``None`` means that of the data module.
        role: ``keep`` or ``recover``, for the means of validation; ``None`` means the role of the evaluation set of the
            same name, if there is one.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False
    columns: dict[str, str] | None = None
    filter: str | list[str] | None = None
    shuffle_seed: int | None = None
    per_group: PerGroup | None = None
    skip: int = 0
    limit: int | None = None
    template: str | None = None
    role: Literal["keep", "recover"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.per_group, dict):  # as a saved config has it
            self.per_group = PerGroup(**self.per_group)


@dataclass
class EvaluationData(AbilityData):
    r"""One evaluation set: rows as for an ability, each with the right answer as its last turn.

    Attributes:
        role: ``keep`` for an accuracy that the target must not lose, ``recover`` for one that it must regain.
        kind: What an answer is: ``exact``, the whole output as it stands in the row; ``number``; ``choice``, the letter
            of an option; ``code``, a function that passes its tests.
        max_new_tokens: Longest output that is generated.
        language: Language of the set: it selects BenchMAX's words, and outputs should be in it.
        question: The question: ``benchmax`` for that benchmark's own words in ``language``, or a text with
            ``{prompt}``, and for choices ``{options}``; ``None`` means the prompt, and a line for each option.
        pattern: A regular expression whose one group is the answer: the strict form of a number or choice; ``None``
            means ``The answer is ...``, or BenchMAX's own.
        metric: What a set's accuracy is, and so the means, sweeps and comparisons: ``exact_match``, the answer in its
            strict form, or ``flexible_match``, the answer anywhere in the output; ``None`` means ``flexible_match`` for
            numbers and choices, whose form no question asks for, else ``exact_match``.
        incorrect: Columns that hold the wrong options of a choice, each with text; the right one is the answer.
        allow_code_execution: Permit that what the model writes is run, in a ``sandbox`` with little time and memory;
            ``kind: code`` needs it.
        sandbox: What holds that code: ``namespaces`` (Linux; no network, no files but the interpreter's, none of the
            machine's processes) is refused where the machine does not permit them; ``process``, a process with limits,
            which keeps code neither from your files nor from the network; or a container's command that ends in its
            interpreter, such as ``[docker, run, --rm, -i, --network=none, python:3.12-slim, python3]``.
    """

    role: Literal["keep", "recover"] = field(kw_only=True)
    kind: Literal["exact", "number", "choice", "code"] = "exact"
    max_new_tokens: int = 64
    language: str | None = None
    question: str | None = None
    pattern: str | None = None
    metric: Metric | None = None
    incorrect: list[str] | None = None
    allow_code_execution: bool = False
    sandbox: str | list[str] = NAMESPACES

    @property
    def main_metric(self) -> Metric:
        """What the set's accuracy is.

        >>> EvaluationData("gsm.jsonl", role="keep", kind="number").main_metric
        'flexible_match'
        """
        return self.metric or ("flexible_match" if self.kind in _PATTERNS else "exact_match")


def list_issues(names: Sequence[str], known: Collection[str], setting: str) -> list[ConfigIssue]:
    """Issues of a list of abilities: unknown names and repeated ones."""
    hint = "Name each ability once, as it is called in data.abilities."
    problem = f"must be one of data.abilities: {', '.join(known)}"
    issues = [ConfigIssue(setting, name, problem, hint) for name in dict.fromkeys(names) if name not in known]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    return issues + [ConfigIssue(setting, name, "must not be named twice", hint) for name in repeated]


def positive_issues(value: int, setting: str) -> list[ConfigIssue]:
    """The issue of a number below 1."""
    return [] if value >= 1 else [ConfigIssue(setting, value, "must be at least 1", "Write 1 or more.")]


def math_pattern(language: str) -> str:
    """The pattern whose group is the answer to a mathematics problem."""
    return _MATH[language][2]


def science_question(language: str) -> str:
    r"""The user's turn of a science question (GPQA), with ``{prompt}`` and ``{options}``.

    >>> science_question("sw")
    'Je, ni jibu gani sahihi kwa swali hili: {prompt}\nChaguo: \n{options}\nWacha tufikirie hatua kwa hatua: '
    """
    before, options, after = _SCIENCE[language]
    return f"{before}{{prompt}}\n{options}\n{{options}}\n{after}"


def question_issues(settings: EvaluationData, where: str) -> list[ConfigIssue]:
    """Issues of the settings of one evaluation set that determine its questions and the answers it accepts."""
    issues, kind = [], settings.kind
    fields = sorted(set(_FIELD.findall(_PLAIN[kind])))
    if settings.question == BENCHMAX:
        if kind == "exact":
            hint = "Choose number, choice or code, or write the question as text."
            issues.append(ConfigIssue(f"{where}.kind", kind, "must be a kind that BenchMAX has", hint))
        elif kind != "code" and settings.language not in LANGUAGES:
            problem = f"must be one of {', '.join(LANGUAGES)} where question is {BENCHMAX}"
            issues.append(ConfigIssue(f"{where}.language", settings.language, problem, "Name the language of the set."))
    elif settings.question is not None and sorted(set(_FIELD.findall(settings.question))) != fields:
        problem = f"must be {BENCHMAX}, or text that contains {' and '.join(f'{{{name}}}' for name in fields)}"
        hint = "Write each of them where it belongs."
        issues.append(ConfigIssue(f"{where}.question", settings.question, problem, hint))
    if settings.pattern is not None:
        issues += _pattern_issues(settings.pattern, kind, f"{where}.pattern")
    if (kind == "choice") is not bool(settings.incorrect):
        problem = "must name the columns of wrong options where kind is choice, and nothing elsewhere"
        hint = "Write, for example, incorrect: [Incorrect Answer 1, Incorrect Answer 2, Incorrect Answer 3]."
        issues.append(ConfigIssue(f"{where}.incorrect", settings.incorrect, problem, hint))
    if kind == "code" and not settings.allow_code_execution:
        problem = "must be true where kind is code: the model's code is run, in a sandbox"
        hint = "Set it on a machine where you allow that."
        issues.append(ConfigIssue(f"{where}.allow_code_execution", False, problem, hint))
    if isinstance(settings.sandbox, str) and settings.sandbox not in (NAMESPACES, PROCESS):
        problem = f"must be {NAMESPACES}, {PROCESS} or the command of a container, as a list of words"
        hint = "Write, for example, [docker, run, --rm, -i, --network=none, python:3.12-slim, python3]."
        issues.append(ConfigIssue(f"{where}.sandbox", settings.sandbox, problem, hint))
    if not settings.sandbox or (settings.sandbox != NAMESPACES and kind != "code"):
        problem = f"must be {NAMESPACES} where kind is {kind}" if settings.sandbox else "must hold a word"
        issues.append(ConfigIssue(f"{where}.sandbox", settings.sandbox, problem, "Leave it out."))
    return issues


def _pattern_issues(pattern: str, kind: str, setting: str) -> list[ConfigIssue]:
    if kind not in _PATTERNS:
        return [ConfigIssue(setting, pattern, f"has no meaning where kind is {kind}", "Leave it out.")]
    problem = "must have one group, which is the answer"
    try:
        if re.compile(pattern).groups == 1:
            return []
    except re.error as error:
        problem = f"must be a regular expression ({error})"
    return [ConfigIssue(setting, pattern, problem, r"Write, for example, Answer: (\-?[0-9.,]+).")]


def question_template(settings: EvaluationData) -> str:
    """The user's turn, with ``{prompt}``, and ``{options}`` where there are some."""
    if settings.question != BENCHMAX:
        return settings.question or _PLAIN[settings.kind]
    if settings.kind == "code":
        return _PLAIN["code"]
    if settings.kind == "choice":
        return science_question(settings.language or "")
    before, after, _ = _MATH[settings.language or ""]
    return f"{before} {{prompt}}\n{after}"


def strict_pattern(settings: EvaluationData) -> str | None:
    """The pattern whose one group is the answer; ``None`` where the whole output is."""
    if settings.pattern is None and settings.question == BENCHMAX and settings.kind == "number":
        return math_pattern(settings.language or "")
    return settings.pattern or _PATTERNS.get(settings.kind)


def fill_fields(text: str, fields: Mapping[str, str]) -> str:
    """``text`` with its fields replaced; braces within a field's value stay.

    >>> fill_fields("{prompt} {other}", {"prompt": "Is {options} a set?"})
    'Is {options} a set? {other}'
    """
    return _FIELD.sub(lambda field: fields.get(field[1], field[0]), text)
