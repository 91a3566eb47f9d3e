"""Models side by side: exact matches on every evaluation set, and the means of those to keep and to recover."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rich.box import SIMPLE
from rich.table import Table

from act_lightning.evaluation.intervals import McNemar, mcnemar, wilson

ROLES = ("keep", "recover")


@dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Attributes:
        model: What it is.
        share: Share of the target's parameters that a transfer changed; ``None`` where there was none.
        correct: Exact matches, by evaluation set.
        total: Items, by evaluation set.
        right: A digit for each item in its order, 1 where it was right, by evaluation set.
    """

    model: str
    share: float | None
    correct: Mapping[str, int]
    total: Mapping[str, int]
    right: Mapping[str, str] = field(default_factory=dict)

    def accuracy(self, name: str) -> float:
        """Share of exact matches in one set."""
        return self.correct[name] / self.total[name]

    def mean(self, names: Sequence[str]) -> float:
        """Mean accuracy over sets, each counted alike, as in the paper's tables."""
        return fmean(self.accuracy(name) for name in names)


def row_of(model: str, share: float | None, right: Mapping[str, Sequence[bool]]) -> Row:
    """A row from the verdict of every item.

    Args:
        model: What it is.
        share: Share of the target's parameters that a transfer changed.
        right: Whether each item was right, by evaluation set.
    """
    digits = {name: "".join("01"[one] for one in its) for name, its in right.items()}
    correct, total = ({name: count(its) for name, its in right.items()} for count in (sum, len))
    return Row(model, share, correct, total, digits)


def against(first: Row, row: Row, name: str) -> McNemar | None:
    """McNemar's test of a row against the first on one set, if both know the verdict of every item."""
    if row is first or len(row.right.get(name, "")) != len(first.right.get(name, ".")):
        return None
    pairs = list(zip(first.right[name], row.right[name], strict=True))
    return mcnemar(gained=pairs.count(("0", "1")), lost=pairs.count(("1", "0")))


def models_table(rows: Sequence[Row], roles: Mapping[str, str]) -> Table:
    """A table for the terminal: a row a model, a column a set with its 95 % interval, and means of several sets.

    Args:
        rows: At least one.
        roles: ``keep`` or ``recover`` by evaluation set.
    """
    by_role = _by_role(roles)
    title = f"exact match in %, its 95 % interval, and items +gained −lost against {rows[0].model}"
    table = Table(title=title, box=SIMPLE)
    table.add_column("", no_wrap=True)
    table.add_column("moved", justify="right", no_wrap=True)
    for role, names in by_role.items():
        for name in names:
            table.add_column(f"{name}\n({role})", justify="right", no_wrap=True)
    averaged = [role for role, names in by_role.items() if len(names) > 1]
    for role in averaged:
        table.add_column(f"{role}\nmean", justify="right", style="bold", no_wrap=True)
    for row in rows:
        cells = [_with_interval(row, name, rows[0]) for names in by_role.values() for name in names]
        means = [f"{100 * row.mean(by_role[role]):.1f}" for role in averaged]
        table.add_row(row.model, "" if row.share is None else f"{row.share:.2%}", *cells, *means)
    return table


def models_csv(rows: Sequence[Row], roles: Mapping[str, str]) -> str:
    """The same as CSV: a line for each model and set, with counts, accuracy and the ends of its 95 % interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["model", "parameter_share", "set", "role", "correct", "total", "accuracy", "low", "high"]
    writer.writerow([*head, "gained", "lost", "p_value"])
    for row in rows:
        for name, role in roles.items():
            correct, total = row.correct[name], row.total[name]
            low, high = wilson(correct, total)
            share = "" if row.share is None else row.share
            test = against(rows[0], row, name) or ("", "", "")
            writer.writerow([row.model, share, name, role, correct, total, correct / total, low, high, *test])
    return text.getvalue()


def _by_role(roles: Mapping[str, str]) -> dict[str, list[str]]:
    by_role = {role: [name for name, its_role in roles.items() if its_role == role] for role in ROLES}
    return {role: names for role, names in by_role.items() if names}


def _with_interval(row: Row, name: str, first: Row) -> str:
    low, high = wilson(row.correct[name], row.total[name])
    share = f"{100 * row.accuracy(name):.1f}  {100 * low:.0f}–{100 * high:.0f}"
    test = against(first, row, name)
    return share if test is None else f"{share}  +{test.gained} −{test.lost}"
