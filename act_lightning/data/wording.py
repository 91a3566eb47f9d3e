"""What an evaluation set asks the model, and the pattern that finds an answer in its output; BenchMAX's own words.

BenchMAX's words are copied literally from https://github.com/CONE-MT/BenchMAX at commit
d509bfdefa43fc8cb32045c98642d709fad56e3a (MIT), ``tasks/mgsm`` and ``tasks/gpqa``; there at most 1,024 new tokens are
generated for mathematics and 2,048 for science. Code follows its evalplus fork (https://github.com/xuuHuang/evalplus,
commit beb1ee792b6018231512ea7cdc850180fde8545c): a model without chat template completes the function, with at most
768. Paper of the benchmark: https://arxiv.org/abs/2502.07346.

Two of its quirks are kept, for comparable numbers: Bengali answers to mathematics are looked for in English, and no
prompt of science mentions the form ``The answer is (B)`` that the strict pattern requires.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from act_lightning.data.ability_data import EvaluationData
from act_lightning.errors import ConfigIssue

BENCHMAX = "benchmax"
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


def math_question(language: str) -> str:
    r"""The user's turn of a mathematics problem (MGSM), with ``{prompt}`` in place of the problem.

    >>> math_question("en")
    'Question: {prompt}\nStep-by-Step Answer:'
    """
    before, after, _ = _MATH[language]
    return f"{before} {{prompt}}\n{after}"


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


def clean_option(option: str) -> str:
    """An option as BenchMAX shows it: without text in square brackets, double spaces made single.

    >>> clean_option(" bicyclo[2.2.1]heptane ")
    'bicycloheptane'
    """
    return re.sub(r"\[.*?\]", "", option.strip().replace(" [title]", ". ")).replace("  ", " ")


def question_issues(settings: EvaluationData, where: str) -> list[ConfigIssue]:
    """Issues of the settings of one evaluation set that determine its questions and the answers it accepts."""
    issues = _wording_issues(settings, where) + _pattern_issues(settings, where)
    if (settings.kind == "choice") is not bool(settings.incorrect):
        problem = "must name the columns of wrong options where kind is choice, and nothing elsewhere"
        hint = "Write, for example, incorrect: [Incorrect Answer 1, Incorrect Answer 2, Incorrect Answer 3]."
        issues.append(ConfigIssue(f"{where}.incorrect", settings.incorrect, problem, hint))
    if settings.kind == "code" and not settings.allow_code_execution:
        problem = "must be true where kind is code: the model's code is run, in a process without network and rights"
        hint = "Set it on a machine where you allow that."
        issues.append(ConfigIssue(f"{where}.allow_code_execution", False, problem, hint))
    return issues


def _wording_issues(settings: EvaluationData, where: str) -> list[ConfigIssue]:
    if settings.question == BENCHMAX:
        if settings.kind == "exact":
            hint = "Choose number, choice or code, or write the question as text."
            return [ConfigIssue(f"{where}.kind", settings.kind, "must be a kind that BenchMAX has", hint)]
        if settings.kind != "code" and settings.language not in LANGUAGES:
            problem = f"must be one of {', '.join(LANGUAGES)} where question is {BENCHMAX}"
            return [ConfigIssue(f"{where}.language", settings.language, problem, "Name the language of the set.")]
        return []
    fields = set(_FIELD.findall(_PLAIN[settings.kind]))
    if settings.question is None or set(_FIELD.findall(settings.question)) == fields:
        return []
    problem = f"must be {BENCHMAX}, or text that contains {' and '.join(f'{{{name}}}' for name in sorted(fields))}"
    return [ConfigIssue(f"{where}.question", settings.question, problem, "Write each of them where it belongs.")]


def _pattern_issues(settings: EvaluationData, where: str) -> list[ConfigIssue]:
    if settings.pattern is None:
        return []
    problem, hint = "must have one group, which is the answer", r"Write, for example, Answer: (\-?[0-9.,]+)."
    if settings.kind not in _PATTERNS:
        problem, hint = f"has no meaning where kind is {settings.kind}", "Leave it out."
    else:
        try:
            if re.compile(settings.pattern).groups == 1:
                return []
        except re.error as error:
            problem = f"must be a regular expression ({error})"
    return [ConfigIssue(f"{where}.pattern", settings.pattern, problem, hint)]


def question_template(settings: EvaluationData) -> str:
    """The user's turn, with ``{prompt}``, and ``{options}`` where there are some."""
    if settings.question != BENCHMAX:
        return settings.question or _PLAIN[settings.kind]
    if settings.kind == "code":
        return _PLAIN["code"]
    return (math_question if settings.kind == "number" else science_question)(settings.language or "")


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


def can_match(pattern: str, key: str) -> bool:
    r"""Whether the one capturing group of ``pattern`` can match ``key``.

    >>> can_match(r"答案是 (\-?[0-9\.\,]+)。", "1,080"), can_match(r"The answer is (\-?[0-9\.\,]+)", "a dozen")
    (True, False)
    """
    group, starts = pattern, list[int]()
    for part in re.finditer(r"\\.|\[(?:\\.|[^\]\\])*\]|\((?:\?P<\w+>)?(\?)?|\)", pattern, re.DOTALL):
        if part[0].startswith("("):
            starts.append(-1 if part[1] else part.end())  # -1: a group that does not capture
        elif part[0] == ")" and (start := starts.pop()) >= 0:
            group = pattern[start : part.start()]
            break
    return re.fullmatch(group, key) is not None
