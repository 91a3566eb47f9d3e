"""The items of an evaluation set: question, options, reference, tests; as prompts to answer, or as labeled samples."""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from act_lightning.data.ability_data import (
    BENCHMAX,
    EvaluationData,
    fill_fields,
    question_issues,
    question_template,
    strict_pattern,
)
from act_lightning.data.conversations import Conversation, LocatedConversation, iter_conversations
from act_lightning.data.files import Row
from act_lightning.data.labels import Encoder, OffsetTokenizer, Sample
from act_lightning.data.loaders import MicroBatch
from act_lightning.data.loading import open_rows, select_rows
from act_lightning.data.templates import resolve_template
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue, located, raise_if_any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def clean_option(option: str) -> str:
    """An option as BenchMAX shows it: without text in square brackets, double spaces made single.

    >>> clean_option(" bicyclo[2.2.1]heptane ")
    'bicycloheptane'
    """
    return re.sub(r"\[.*?\]", "", option.strip().replace(" [title]", ". ")).replace("  ", " ")


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
    """The items of an evaluation set as a model reads them, in the order of the rows."""
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
    """The items of an evaluation set, in the order of its rows; only the last answer of each is labeled."""
    where = f"data.evaluations.{name}"
    encoder = Encoder(resolve_template(settings, where, tokenizer, template), tokenizer, sys.maxsize)
    samples = []
    for item in read_items(settings, where):
        sample = encoder(item.messages, item.location)
        assert sample is not None, "an item has an answer"
        samples.append(replace(sample, labels=last_answer(sample.labels)))
    return samples


def last_answer(labels: Tensor) -> Tensor:
    """``labels``, int64 ``[tokens]`` with at least one answer, with all answers but the last ignored.

    >>> last_answer(torch.tensor([-100, 5, -100, 7, 8])).tolist()
    [-100, -100, -100, 7, 8]
    """
    answered = (labels != IGNORED).nonzero().squeeze(1)
    ignored = (labels[: answered[-1]] == IGNORED).nonzero().squeeze(1)
    start = int(ignored[-1]) + 1 if len(ignored) else 0
    return torch.cat([torch.full((start,), IGNORED), labels[start:]])
