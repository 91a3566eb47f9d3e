"""What a user may say about one data set: the entries of ``data.abilities`` and ``data.evaluations``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class AbilityData:
    """Where the rows of one ability come from, and which of them are used.

    Attributes:
        path: A JSONL or Parquet file, a hub id such as ``meta-math/MetaMathQA``, or ``lab:<name>``.
        name: Configuration of a hub data set.
        split: Split of a hub data set or of the laboratory.
        revision: Commit, branch or tag of a hub data set.
        columns: Our name of a column to the data set's name of it, such as ``{prompt: query, answer: response}``.
        filter: ``column == value`` or ``column != value``, compared as text; applied first.
        shuffle_seed: Seed of a shuffle after ``filter``; ``None`` keeps the order.
        limit: Take this many of the first rows, after ``filter`` and shuffle.
        template: Template of this ability; ``None`` means that of the data module.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: dict[str, str] | None = None
    filter: str | None = None
    shuffle_seed: int | None = None
    limit: int | None = None
    template: str | None = None


@dataclass
class EvaluationData(AbilityData):
    """One evaluation set: rows as for an ability, each with the reference as its last answer.

    Attributes:
        role: ``keep`` for an accuracy that the target must not lose, ``recover`` for one that it must regain.
        kind: How an output is compared with its reference.
        max_new_tokens: Longest output that is generated.
        language: Language of the set, for reports.
    """

    role: Literal["keep", "recover"] = field(kw_only=True)
    kind: Literal["exact"] = "exact"
    max_new_tokens: int = 64
    language: str | None = None
