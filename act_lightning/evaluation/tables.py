"""Models side by side: exact matches on every evaluation set, and the means of those to keep and to recover."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.box import SIMPLE
from rich.table import Table

from act_lightning.evaluation.intervals import wilson

ROLES = ("keep", "recover")


@dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Attributes:
        model: What it is.
        share: Share of the target's parameters that a transfer changed; ``None`` where there was none.
        correct: Exact matches, by evaluation set.
        total: Items, by evaluation set.
    """

    model: str
    share: float | None
    correct: Mapping[str, int]
    total: Mapping[str, int]

    def accuracy(self, name: str) -> float:
        """Share of exact matches in one set."""
        return self.correct[name] / self.total[name]

    def mean(self, names: Sequence[str]) -> float:
        """Mean accuracy over sets, each counted alike, as in the paper's tables."""
        return fmean(self.accuracy(name) for name in names)


def as_table(rows: Sequence[Row], roles: Mapping[str, str]) -> Table:
    """A table for the terminal: a row a model, a column a set with its 95 % interval, and means of several sets.

    Args:
        rows: At least one.
        roles: ``keep`` or ``recover`` by evaluation set.
    """
    by_role = _by_role(roles)
    table = Table(title="exact match in %, and its 95 % interval", box=SIMPLE)
    table.add_column("", no_wrap=True)
    table.add_column("moved", justify="right", no_wrap=True)
    for role, names in by_role.items():
        for name in names:
            table.add_column(f"{name}\n({role})", justify="right", no_wrap=True)
    averaged = [role for role, names in by_role.items() if len(names) > 1]
    for role in averaged:
        table.add_column(f"{role}\nmean", justify="right", style="bold", no_wrap=True)
    for row in rows:
        cells = [_with_interval(row, name) for names in by_role.values() for name in names]
        means = [f"{100 * row.mean(by_role[role]):.1f}" for role in averaged]
        table.add_row(row.model, "" if row.share is None else f"{row.share:.2%}", *cells, *means)
    return table


def as_csv(rows: Sequence[Row], roles: Mapping[str, str]) -> str:
    """The same as CSV: a line for each model and set, with counts, accuracy and the ends of its 95 % interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "parameter_share", "set", "role", "correct", "total", "accuracy", "low", "high"])
    for row in rows:
        for name, role in roles.items():
            correct, total = row.correct[name], row.total[name]
            low, high = wilson(correct, total)
            share = "" if row.share is None else row.share
            writer.writerow([row.model, share, name, role, correct, total, correct / total, low, high])
    return text.getvalue()


def _by_role(roles: Mapping[str, str]) -> dict[str, list[str]]:
    by_role = {role: [name for name, its_role in roles.items() if its_role == role] for role in ROLES}
    return {role: names for role, names in by_role.items() if names}


def _with_interval(row: Row, name: str) -> str:
    low, high = wilson(row.correct[name], row.total[name])
    return f"{100 * row.accuracy(name):.1f}  {100 * low:.0f}–{100 * high:.0f}"
