"""The settings of one data set: the entries of ``data.abilities`` and ``data.evaluations``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from act_lightning.errors import ConfigIssue


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
        incorrect: Columns that hold the wrong options of a choice, each with text; the right one is the answer.
        allow_code_execution: Permit that what the model writes is run, in a process of its own with little time and
            memory; ``kind: code`` needs it.
    """

    role: Literal["keep", "recover"] = field(kw_only=True)
    kind: Literal["exact", "number", "choice", "code"] = "exact"
    max_new_tokens: int = 64
    language: str | None = None
    question: str | None = None
    pattern: str | None = None
    incorrect: list[str] | None = None
    allow_code_execution: bool = False


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
