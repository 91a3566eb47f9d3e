"""The items of an evaluation set: question, options, reference, tests; as prompts to answer, or as labeled samples."""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from act_lightning.data.ability_data import EvaluationData
from act_lightning.data.conversations import Conversation, LocatedConversation, iter_conversations
from act_lightning.data.files import Row
from act_lightning.data.labels import Encoder, OffsetTokenizer, Sample
from act_lightning.data.loaders import MicroBatch
from act_lightning.data.loading import open_rows, select_rows
from act_lightning.data.templates import resolve_template
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue, located, raise_if_any

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Program:
    """The context of a function to be completed.

    Attributes:
        prompt: The code before it: imports, signature, docstring.
        test: Code that defines ``check(candidate)``.
        entry_point: The function's name.
    """

    prompt: str
    test: str
    entry_point: str


@dataclass(frozen=True)
class Item:
    """One row of an evaluation set.

    Attributes:
        location: The row's location, for messages.
        messages: The conversation as the model sees it; its last turn is the answer as the row has it.
        reference: What an output is compared with: the answer, or the letter of the right option, such as ``(B)``.
        options: Options as they are shown, from (A) on.
        program: What runs the code that the model writes.
        flag: What is doubtful about the row.
    """

    location: str
    messages: Conversation
    reference: str
    options: tuple[str, ...] = ()
    program: Program | None = None
    flag: str | None = None

    @property
    def identity(self) -> str:
        """16 hexadecimal digits, equal for two items with the same question and the same reference."""
        parts = [part for message in self.messages[:-1] for part in (message["role"], message["content"])]
        return hashlib.sha256("\0".join([*parts, self.reference]).encode()).hexdigest()[:16]


def read_items(settings: EvaluationData, where: str) -> list[Item]:
    """The items of an evaluation set, in the order of its rows.

    Raises:
        ActError: If the settings are wrong, the rows cannot be read, or one of them has no answer, an answer that the
            pattern cannot match, options that repeat, or no tests.
    """
    raise_if_any(question_issues(settings, where))
    conversations = iter_conversations(settings, where)
    if settings.kind in ("exact", "number"):
        return [_make_item(conversation, {}, settings, where) for conversation in conversations]
    rows = select_rows(open_rows(settings, where), settings, where)  # whose other columns hold options or tests
    pairs = zip(conversations, rows, strict=True)
    return [_make_item(conversation, row, settings, where) for conversation, (_, row) in pairs]


def _make_item(conversation: LocatedConversation, row: Row, settings: EvaluationData, where: str) -> Item:
    location, messages = conversation
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        problem = f"must end with a reference answer in every row, and does not in {location}"
        hint = "Give every row an answer, or exclude the row with filter."
        raise ActError(ConfigIssue(where, messages, problem, hint))
    prompt, answer = messages[-2]["content"], messages[-1]["content"]
    reference, options = answer, tuple[str, ...]()
    program: Program | None = None
    flag: str | None = None
    match settings.kind:
        case "number":
            reference, pattern = answer.strip(), strict_pattern(settings) or ""
            if not can_match(pattern, reference):
                problem = f"must be something that the group of {pattern} can match"
                hint = "Correct the row, exclude it with filter, or set pattern."
                raise ActError(ConfigIssue(f"{location}, answer", answer, problem, hint))
        case "choice":
            incorrect = [_option(row, column, location) for column in settings.incorrect or []]
            clean = clean_option if settings.question == BENCHMAX else str.strip
            options, reference = shuffle_options(prompt, answer, incorrect, location, clean)
            flag = "options look alike" if len(set(options)) < len(options) else None
        case "code":
            prompt = prompt.strip() + "\n" if settings.question == BENCHMAX else prompt
            program = make_program(prompt, answer, row, location)
    lines = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    question = fill_fields(question_template(settings), {"prompt": prompt, "options": lines})
    turns = [*messages[:-2], {**messages[-2], "content": question}, messages[-1]]
    return Item(location, turns, reference, options, program, flag)


def _option(row: Row, column: str, location: str) -> str:
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return value
    problem = "must be text" if column in row else f"is missing: the row has {', '.join(row)}"
    raise ActError(ConfigIssue(f"{location}, {column}", value, problem, "Correct incorrect or the row."))


def shuffle_options(
    question: str, correct: str, incorrect: Sequence[str], location: str, clean: Callable[[str], str] = str
) -> tuple[tuple[str, ...], str]:
    """The options of a choice, from (A) on, and the letter of the right one.

    The order is drawn from a seed made of the row's own text, so neither processes nor other rows change it; then
    ``clean`` is applied.

    Raises:
        ActError: If two options are the same, or there are more than letters.

    >>> shuffle_options("2 + 2?", "4", ["3", "5"], "sums.jsonl:1")
    (('4', '5', '3'), '(A)')
    """
    options = [*incorrect, correct]
    if len(set(map(str.strip, options))) < len(options) or not 1 < len(options) <= len(LETTERS):
        problem, hint = "must be 2 to 26 options, none of them twice", "Correct the row, or exclude it with filter."
        raise ActError(ConfigIssue(f"{location}, options", options, problem, hint))
    seed = hashlib.sha256("\0".join([question, *options]).encode()).digest()
    random.Random(int.from_bytes(seed)).shuffle(options)
    cleaned = tuple(clean(option) for option in options)
    # Where cleaning made two alike, the first counts, as in BenchMAX.
    return cleaned, f"({LETTERS[cleaned.index(clean(correct))]})"


_TEST_AGAINST_SOLUTION = """\
import copy as _copy, json as _json, math as _math

def _is_close(value, expected, atol):
    if value == expected:
        return True
    if isinstance(expected, float):
        return isinstance(value, (int, float)) and _math.isclose(value, expected, rel_tol=1e-7, abs_tol=atol or 1e-6)
    if isinstance(expected, (list, tuple)):
        same_shape = type(value) is type(expected) and len(value) == len(expected)
        return same_shape and all(_is_close(*pair, atol) for pair in zip(value, expected))
    return False

def check(candidate):
    solution = {{}}
    exec({solution!r}, solution)
    for arguments in _json.loads({inputs!r}):
        expected = solution[{entry_point!r}](*_copy.deepcopy(arguments))
        assert _is_close(candidate(*_copy.deepcopy(arguments)), expected, {atol!r})
"""


def make_program(prompt: str, solution: str, row: Row, location: str) -> Program:
    """The program of a row.

    Raises:
        ActError: If the row names no function, or has neither tests nor inputs.
    """
    hint = "Give each row entry_point, and test or base_input, or exclude it with filter."
    entry_point, test = row.get("entry_point"), row.get("test")
    if not isinstance(entry_point, str) or not entry_point.isidentifier():
        problem = "must name the function that is tested"
        raise ActError(ConfigIssue(f"{location}, entry_point", entry_point, problem, hint))
    if isinstance(test, str) and test.strip():
        return Program(prompt, test, entry_point)
    inputs = base_input = row.get("base_input")
    if isinstance(base_input, str):
        try:
            inputs = json.loads(base_input)
        except ValueError:
            inputs = None
    if not isinstance(inputs, list) or not inputs or not all(isinstance(arguments, list) for arguments in inputs):
        problem = "must be there, or base_input with lists of arguments"
        raise ActError(ConfigIssue(f"{location}, test", base_input, problem, hint))
    fields = {"inputs": json.dumps(inputs), "entry_point": entry_point, "atol": row.get("atol") or 0}
    return Program(prompt, _TEST_AGAINST_SOLUTION.format(solution=prompt + solution, **fields), entry_point)


@dataclass(frozen=True, eq=False)
class Prompt:
    """One item of an evaluation set, as the model reads it.

    Attributes:
        input_ids: int64 ``[tokens]``, up to where the model continues.
        text: The text before tokenization.
        item: The question, and what the output is compared with.
    """

    input_ids: Tensor
    text: str
    item: Item


def read_prompts(
    name: str, settings: EvaluationData, tokenizer: PreTrainedTokenizerBase, template: str
) -> list[Prompt]:
    """The items of an evaluation set, in the order of its rows.

    Raises:
        ActError: If its rows cannot be read or rendered, or one of them has no reference, or none that can be matched.
    """
    where = f"data.evaluations.{name}"
    set_template = resolve_template(settings, where, tokenizer, template)
    tokenize = OffsetTokenizer(tokenizer)
    prompts = []
    for item in read_items(settings, where):
        with located(item.location):
            rendered = set_template.render_prompt(item.messages)
            tokens = tokenize(rendered.text, rendered.add_special_tokens)
        end = len(rendered.text)  # what the tokenizer adds after the text is left out
        ids = [token for token, start in zip(tokens.ids, tokens.starts, strict=True) if start < end]
        prompts.append(Prompt(torch.tensor(ids), rendered.text, item))
    return prompts


def collate_prompts(prompts: Sequence[Prompt], pad_id: int, micro_batch: MicroBatch) -> dict[str, Any]:
    """One batch for generation, padded on the left; one that does not count only keeps processes in step.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 ``[rows, length]``; ``rows``, their numbers in the set, ``prompts``
        and ``references``, lists that are empty if the batch does not count.
    """
    ids = [prompts[row].input_ids for row in micro_batch.rows]
    masks = [torch.ones_like(row_ids) for row_ids in ids]
    rows = list(micro_batch.rows) if micro_batch.counts else []
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side="left"),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side="left"),
        "rows": rows,
        "prompts": [prompts[row].text for row in rows],
        "references": [prompts[row].item.reference for row in rows],
    }


def read_references(
    name: str, settings: EvaluationData, tokenizer: PreTrainedTokenizerBase, template: str
) -> list[Sample]:
    """The items of an evaluation set, in the order of its rows; only the last answer of each is labeled.

    Raises:
        ActError: If its rows cannot be read or rendered, or one of them has no reference.
    """
    where = f"data.evaluations.{name}"
    encoder = Encoder(resolve_template(settings, where, tokenizer, template), tokenizer, sys.maxsize)
    samples = []
    for item in read_items(settings, where):
        sample = encoder(item.messages, item.location)
        assert sample is not None, "an item has an answer"
        samples.append(replace(sample, labels=last_answer(sample.labels)))
    return samples


def last_answer(labels: Tensor) -> Tensor:
    """``labels`` with all answers but the last ignored.

    Args:
        labels: int64 ``[tokens]``, at least one of them not ignored.

    >>> last_answer(torch.tensor([-100, 5, -100, 7, 8])).tolist()
    [-100, -100, -100, 7, 8]
    """
    answered = (labels != IGNORED).nonzero().squeeze(1)
    ignored = (labels[: answered[-1]] == IGNORED).nonzero().squeeze(1)
    start = int(ignored[-1]) + 1 if len(ignored) else 0
    return torch.cat([torch.full((start,), IGNORED), labels[start:]])


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
