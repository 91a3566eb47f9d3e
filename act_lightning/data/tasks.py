"""The items of an evaluation set: what is asked, with which options, and what the output is compared with."""

from __future__ import annotations

import hashlib
import json
import random
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from act_lightning.data import wording
from act_lightning.data.ability_data import EvaluationData
from act_lightning.data.conversations import Conversation, iter_conversations
from act_lightning.data.labels import Encoder, OffsetTokenizer, Sample
from act_lightning.data.loaders import MicroBatch
from act_lightning.data.loading import Row, open_rows
from act_lightning.data.row_selection import select_rows
from act_lightning.data.templates import Template, make_template
from act_lightning.data.wording import (
    BENCHMAX,
    can_match,
    fill_fields,
    question_issues,
    question_template,
    strict_pattern,
)
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue, located, raise_if_any

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Choices:
    """Options as they are shown.

    Attributes:
        options: Their texts, from (A) on.
        answer: The right one's letter, such as ``(B)``.
        repeated: Whether two look alike, though their rows differ: a set's own cleaning did that.
    """

    options: tuple[str, ...]
    answer: str
    repeated: bool = False

    def __str__(self) -> str:
        """A line for each.

        >>> print(Choices(("oxygen", "iron"), "(B)"))
        (A) oxygen
        (B) iron
        """
        return "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, self.options, strict=False))


def make_choices(
    question: str, correct: str, incorrect: Sequence[str], place: str, clean: Callable[[str], str] = str
) -> Choices:
    """Shuffle options by a seed made of the row's own text: neither process nor other rows change their order.

    Args:
        question: The question.
        correct: The right option.
        incorrect: The wrong ones, at least one.
        place: Where the row stands, for messages.
        clean: What is done to an option before it is shown.

    Raises:
        ActError: If two options are the same, or there are more than letters.

    >>> make_choices("2 + 2?", "4", ["3", "5"], "sums.jsonl:1")
    Choices(options=('4', '5', '3'), answer='(A)', repeated=False)
    """
    options = [*incorrect, correct]
    if len(set(map(str.strip, options))) < len(options) or not 1 < len(options) <= len(LETTERS):
        hint = "Mend the row, or leave it out with filter."
        raise ActError(ConfigIssue(f"{place}, options", options, "must be 2 to 26 options, none of them twice", hint))
    seed = hashlib.sha256("\0".join([question, *options]).encode()).digest()
    random.Random(int.from_bytes(seed)).shuffle(options)
    shown = tuple(clean(option) for option in options)
    # Where cleaning made two alike, the first counts, as BenchMAX has it.
    answer = f"({LETTERS[shown.index(clean(correct))]})"
    return Choices(shown, answer, repeated=len(set(shown)) < len(shown))


_AGAINST_SOLUTION = """\
import copy as _copy, json as _json, math as _math

def _alike(got, wanted, atol):
    if got == wanted:
        return True
    if isinstance(wanted, float):
        return isinstance(got, (int, float)) and _math.isclose(got, wanted, rel_tol=1e-7, abs_tol=atol or 1e-6)
    if isinstance(wanted, (list, tuple)):
        same_shape = type(got) is type(wanted) and len(got) == len(wanted)
        return same_shape and all(_alike(one, other, atol) for one, other in zip(got, wanted))
    return False

def check(candidate):
    own = {{}}
    exec({solution!r}, own)
    for arguments in _json.loads({inputs!r}):
        wanted = own[{entry_point!r}](*_copy.deepcopy(arguments))
        assert _alike(candidate(*_copy.deepcopy(arguments)), wanted, {atol!r})
"""


@dataclass(frozen=True)
class Program:
    """The surroundings of a function to be completed.

    Attributes:
        prompt: The code before it: imports, signature, docstring.
        test: Code that defines ``check(candidate)``.
        entry_point: The function's name.
    """

    prompt: str
    test: str
    entry_point: str


def make_program(prompt: str, solution: str, row: Row, place: str) -> Program:
    """The program of a row.

    Args:
        prompt: The code that the model is shown.
        solution: The code that completes it rightly.
        row: The row as it was read.
        place: Where it stands, for messages.

    Raises:
        ActError: If the row names no function, or has neither tests nor inputs.
    """
    entry_point = row.get("entry_point")
    if not isinstance(entry_point, str) or not entry_point.isidentifier():
        raise ActError(
            ConfigIssue(f"{place}, entry_point", entry_point, "must name the function that is tested", _REMEDY)
        )
    test = row.get("test")
    if isinstance(test, str) and test.strip():
        return Program(prompt, test, entry_point)
    inputs = _inputs(row.get("base_input"), place)
    atol = row.get("atol") or 0
    return Program(
        prompt,
        _AGAINST_SOLUTION.format(solution=prompt + solution, inputs=inputs, entry_point=entry_point, atol=atol),
        entry_point,
    )


_REMEDY = "Give each row entry_point, and test or base_input, or leave it out with filter."


def _inputs(value: Any, place: str) -> str:  # noqa: ANN401 - whatever a row holds
    try:
        inputs = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        inputs = None
    if isinstance(inputs, list) and inputs and all(isinstance(arguments, list) for arguments in inputs):
        return json.dumps(inputs)
    raise ActError(
        ConfigIssue(f"{place}, test", value, "must be there, or base_input with lists of arguments", _REMEDY)
    )


@dataclass(frozen=True)
class Item:
    """One row of an evaluation set.

    Attributes:
        place: Where the row stands, for messages.
        messages: The conversation as the model is to see it; its last turn is the answer as the row has it.
        reference: What an output is compared with: the answer, or the letter of the right option, such as ``(B)``.
        options: Options as they are shown, from (A) on.
        program: What runs the code that the model writes.
        flag: What is doubtful about the row.
    """

    place: str
    messages: Conversation
    reference: str
    options: tuple[str, ...] = ()
    program: Program | None = None
    flag: str | None = None

    @property
    def identity(self) -> str:
        """16 hexadecimal digits that two items share if they ask the same and want the same answer."""
        said = [part for message in self.messages[:-1] for part in (message["role"], message["content"])]
        return hashlib.sha256("\0".join([*said, self.reference]).encode()).hexdigest()[:16]


def read_items(settings: EvaluationData, where: str) -> list[Item]:
    """The items of an evaluation set, in the order of its rows.

    Args:
        settings: The settings of one evaluation set; the last turn of each row holds the answer.
        where: Its place in the config, such as ``data.evaluations.math-sw``.

    Raises:
        ActError: If the settings are wrong, the rows cannot be read, or one of them has no answer, an answer that the
            pattern cannot match, options that repeat, or no tests.
    """
    raise_if_any(question_issues(settings, where))
    return [_item(one, settings, where) for one in _located(settings, where)]


class _Located(NamedTuple):
    place: str
    messages: Conversation
    row: Row


def _located(settings: EvaluationData, where: str) -> Iterator[_Located]:
    """Conversations, and for the kinds that read more columns the rows they came from."""
    conversations = iter_conversations(settings, where)
    if settings.kind in ("exact", "number"):
        return (_Located(place, messages, {}) for place, messages in conversations)
    rows = select_rows(open_rows(settings, where), settings, where)
    return (_Located(place, messages, row) for (place, messages), (_, row) in zip(conversations, rows, strict=True))


def _item(one: _Located, settings: EvaluationData, where: str) -> Item:
    answer = one.messages[-1]
    if answer["role"] != "assistant" or not answer["content"].strip() or len(one.messages) < 2:
        hint = "Give every row an answer, or leave the row out with filter."
        problem = f"must end with a reference answer in every row, and does not in {one.place}"
        raise ActError(ConfigIssue(where, one.messages, problem, hint))
    prompt = one.messages[-2]["content"]
    match settings.kind:
        case "exact":
            return Item(one.place, _asking(one, settings, prompt), answer["content"])
        case "number":
            return Item(one.place, _asking(one, settings, prompt), _key(answer["content"], settings, one.place))
        case "choice":
            choices = _choices(one, settings, prompt, answer["content"])
            messages = _asking(one, settings, prompt, str(choices))
            flag = "options look alike" if choices.repeated else None
            return Item(one.place, messages, choices.answer, choices.options, flag=flag)
        case "code":
            text = prompt.strip() + "\n" if settings.question == BENCHMAX else prompt
            program = make_program(text, answer["content"], one.row, one.place)
            return Item(one.place, _asking(one, settings, text), answer["content"], program=program)


def _asking(one: _Located, settings: EvaluationData, prompt: str, options: str = "") -> Conversation:
    """The conversation with the set's own words around its last question."""
    asked = fill_fields(question_template(settings), {"prompt": prompt, "options": options})
    return [*one.messages[:-2], {**one.messages[-2], "content": asked}, one.messages[-1]]


def _key(answer: str, settings: EvaluationData, place: str) -> str:
    key, pattern = answer.strip(), strict_pattern(settings) or ""
    if can_match(pattern, key):
        return key
    hint = "Mend the row, leave it out with filter, or set pattern."
    raise ActError(ConfigIssue(f"{place}, answer", answer, f"must be what the group of {pattern} can match", hint))


def _choices(one: _Located, settings: EvaluationData, prompt: str, correct: str) -> Choices:
    incorrect = [_option(one.row, column, one.place) for column in settings.incorrect or []]
    clean = wording.clean_option if settings.question == BENCHMAX else str.strip
    return make_choices(prompt, correct, incorrect, one.place, clean)


def _option(row: Row, column: str, place: str) -> str:
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return value
    problem = "must be text" if column in row else f"is missing: the row has {', '.join(row)}"
    raise ActError(ConfigIssue(f"{place}, {column}", value, problem, "Mend incorrect or the row."))


@dataclass(frozen=True, eq=False)
class Prompt:
    """One item of an evaluation set, as the model reads it.

    Attributes:
        input_ids: int64 ``[tokens]``, up to where the model goes on.
        text: The text they were made from.
        item: What is asked, and what the output is compared with.
    """

    input_ids: Tensor
    text: str
    item: Item

    @property
    def reference(self) -> str:
        """The answer that is wanted."""
        return self.item.reference


def read_prompts(
    name: str, settings: EvaluationData, tokenizer: PreTrainedTokenizerBase, default_template: str
) -> list[Prompt]:
    """The items of an evaluation set, in the order of its rows.

    Args:
        name: Name of the set.
        settings: Where its rows come from; the last turn of each holds the reference.
        tokenizer: The target's tokenizer.
        default_template: Template where the set has none of its own.

    Raises:
        ActError: If its rows cannot be read or rendered, or one of them has no reference, or none that can be matched.
    """
    where = f"data.evaluations.{name}"
    template, tokenize = evaluation_template(where, settings, tokenizer, default_template), OffsetTokenizer(tokenizer)
    return [_prompt(item, template, tokenize) for item in read_items(settings, where)]


def evaluation_template(
    where: str, settings: EvaluationData, tokenizer: PreTrainedTokenizerBase, default_template: str
) -> Template:
    """The template of an evaluation set: its own, or the data module's."""
    setting = "data.template" if settings.template is None else f"{where}.template"
    return make_template(settings.template or default_template, tokenizer, setting)


def _prompt(item: Item, template: Template, tokenize: OffsetTokenizer) -> Prompt:
    rendered = template.render_prompt(item.messages, item.place)
    with located(item.place):
        tokens = tokenize(rendered.text, rendered.add_special_tokens)
    end = len(rendered.text)
    ids = [token for token, start in zip(tokens.ids, tokens.starts, strict=True) if start < end]
    return Prompt(torch.tensor(ids), rendered.text, item)


def collate_prompts(prompts: Sequence[Prompt], pad_id: int, chosen: MicroBatch) -> dict[str, Any]:
    """One batch for generation, padded on the left.

    Args:
        prompts: What the indices in ``chosen`` point at.
        pad_id: Token id that fills up ``input_ids``.
        chosen: The batch; if it does not count, it only keeps this process in step with the others.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 ``[rows, length]``; ``rows``, their numbers in the set, ``prompts``
        and ``references``, lists that are empty if the batch does not count.
    """
    rows = [prompts[row].input_ids for row in chosen.rows]
    masks = [torch.ones_like(row) for row in rows]
    wanted = [prompts[row] for row in chosen.rows if chosen.counts]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left"),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side="left"),
        "rows": list(chosen.rows) if chosen.counts else [],
        "prompts": [prompt.text for prompt in wanted],
        "references": [prompt.reference for prompt in wanted],
    }


def read_references(
    name: str, settings: EvaluationData, tokenizer: PreTrainedTokenizerBase, default_template: str
) -> list[Sample]:
    """The items of an evaluation set, in the order of its rows; only the last answer of each is labeled.

    Args:
        name: Name of the set.
        settings: Where its rows come from.
        tokenizer: The target's tokenizer.
        default_template: Template where the set has none of its own.

    Raises:
        ActError: If its rows cannot be read or rendered, or one of them has no reference.
    """
    where = f"data.evaluations.{name}"
    encode = Encoder(evaluation_template(where, settings, tokenizer, default_template), tokenizer, sys.maxsize)
    found = []
    for item in read_items(settings, where):
        sample = encode(item.messages, item.place)
        assert sample is not None, "an item has an answer"
        found.append(replace(sample, labels=last_answer(sample.labels)))
    return found


def last_answer(labels: Tensor) -> Tensor:
    """``labels`` with all answers ignored but the last.

    Args:
        labels: int64 ``[tokens]``, at least one of them not ignored.

    >>> last_answer(torch.tensor([-100, 5, -100, 7, 8])).tolist()
    [-100, -100, -100, 7, 8]
    """
    answered = (labels != IGNORED).nonzero().squeeze(1)
    ignored = (labels[: answered[-1]] == IGNORED).nonzero().squeeze(1)
    start = int(ignored[-1]) + 1 if len(ignored) else 0
    return torch.cat([torch.full((start,), IGNORED), labels[start:]])
