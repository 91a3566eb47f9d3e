"""The items of an evaluation set: what is asked, and what the output is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from act_lightning.data.asking import benchmax
from act_lightning.data.asking.choices import Choices, make_choices
from act_lightning.data.asking.programs import Program, make_program
from act_lightning.data.asking.questions import BENCHMAX, can_match, filled, question_faults, strict_pattern, wording
from act_lightning.data.reading.row_source import Row
from act_lightning.data.reading.rows import iter_conversations
from act_lightning.data.reading.selection import select
from act_lightning.data.reading.shapes import Conversation
from act_lightning.data.reading.sources import open_rows
from act_lightning.data.settings import EvaluationData
from act_lightning.errors import ActError, Fault, refuse


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
    refuse(question_faults(settings, where))
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
    rows = select(open_rows(settings, where), settings, where)
    return (_Located(place, messages, row) for (place, messages), (_, row) in zip(conversations, rows, strict=True))


def _item(one: _Located, settings: EvaluationData, where: str) -> Item:
    answer = one.messages[-1]
    if answer["role"] != "assistant" or not answer["content"].strip() or len(one.messages) < 2:
        remedy = "Give every row an answer, or leave the row out with filter."
        rule = f"must end with a reference answer in every row, and does not in {one.place}"
        raise ActError(Fault(where, one.messages, rule, remedy))
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
    asked = filled(wording(settings), {"prompt": prompt, "options": options})
    return [*one.messages[:-2], {**one.messages[-2], "content": asked}, one.messages[-1]]


def _key(answer: str, settings: EvaluationData, place: str) -> str:
    key, pattern = answer.strip(), strict_pattern(settings) or ""
    if can_match(pattern, key):
        return key
    remedy = "Mend the row, leave it out with filter, or set pattern."
    raise ActError(Fault(f"{place}, answer", answer, f"must be what the group of {pattern} can match", remedy))


def _choices(one: _Located, settings: EvaluationData, prompt: str, correct: str) -> Choices:
    incorrect = [_option(one.row, column, one.place) for column in settings.incorrect or []]
    clean = benchmax.clean_option if settings.question == BENCHMAX else str.strip
    return make_choices(prompt, correct, incorrect, one.place, clean)


def _option(row: Row, column: str, place: str) -> str:
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return value
    rule = "must be text" if column in row else f"is missing: the row has {', '.join(row)}"
    raise ActError(Fault(f"{place}, {column}", value, rule, "Mend incorrect or the row."))
