"""What a sweep leaves: results, the comparison of methods, the best point as a config, and a page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from act_lightning.evaluation.results import markdown_table, shown
from act_lightning.sweeping.choice import Compared
from act_lightning.sweeping.outcome import ROLES, Outcome

_TESTED = ("gained", "lost", "p_value")


def rows_of(outcomes: Iterable[Outcome], target: Outcome) -> list[dict[str, Any]]:
    """A row for each point: λ, p, share of parameters, keep and recover with intervals, sets with counts, seconds.

    Args:
        outcomes: What was found.
        target: What the target itself gave, to which each set is compared item by item (McNemar).
    """
    return [_row(one, target) for one in outcomes]


def _row(one: Outcome, target: Outcome) -> dict[str, Any]:
    at = one.point
    row: dict[str, Any] = {
        "method": at.method, "scale": at.scale, "ratio": at.ratio, "tuned": at.tuned, "parameter_share": one.share
    }  # fmt: skip
    for role in ROLES:
        row |= zip((role, f"{role}_low", f"{role}_high"), one.mean(role), strict=True)
    for name in one.right:
        correct, total = one.counts(name)
        row |= {f"{name}_correct": correct, f"{name}_total": total}
        tested = ("",) * 3 if one.point == target.point else one.against(target, name)
        row |= {f"{name}_{key}": value for key, value in zip(_TESTED, tested, strict=True)}
    return row | {f"seconds_{part}": round(seconds, 4) for part, seconds in one.seconds.items()}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, with the columns of all of them."""
    text, columns = io.StringIO(), dict.fromkeys(column for row in rows for column in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(rows: Sequence[Mapping[str, Any]], best: Outcome | None, front: Sequence[Outcome]) -> str:
    """The target, all points, which of them are on the Pareto front, and the best."""
    content = {
        "target": rows[0],
        "points": rows[1:],
        "front": [asdict(one.point) for one in front],
        "best": None if best is None else asdict(best.point),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


_HEAD = ("", "compared at", "λ", "p", "moved", "keep", "recover", "keep: gained, lost", "recover: gained, lost")


def compared_cells(rows: Sequence[Compared], target: Outcome) -> list[tuple[str, ...]]:
    """The comparison of methods as text, the target first."""
    first = ("target", "", "", "", "", *(shown(*target.mean(role)) for role in ROLES), "", "")
    return [first, *(_cells(row, target) for row in rows)]


def _cells(row: Compared, target: Outcome) -> tuple[str, ...]:
    one, at = row.outcome, row.outcome.point
    name = f"{at.method}, then fine-tuning" if at.tuned else at.method
    means, changes = (shown(*one.mean(role)) for role in ROLES), (_changes(one, target, role) for role in ROLES)
    return (name, row.basis, f"{at.scale:.3g}", f"{at.ratio:.3g}", f"{one.share:.2%}", *means, *changes)


def _changes(one: Outcome, target: Outcome, role: str) -> str:
    tests = [one.against(target, name) for name, its in one.roles.items() if its == role]
    return f"+{sum(test.gained for test in tests)} −{sum(test.lost for test in tests)}"


def compared_markdown(rows: Sequence[Compared], target: Outcome) -> str:
    """The comparison of methods for a card."""
    return markdown_table(_HEAD, compared_cells(rows, target))


def compared_table(rows: Sequence[Compared], target: Outcome) -> Table:
    """The comparison of methods for the terminal."""
    title = "Means in %, below them 95 % intervals, and items +gained −lost against the target"
    table = Table(title=title, box=SIMPLE, pad_edge=False)
    for number, name in enumerate(_HEAD[:-2]):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=number > 1)
    for *cells, keep, recover, kept, recovered in compared_cells(rows, target):
        both = (f"{keep}\n{kept}", f"{recover}\n{recovered}")
        table.add_row(*cells, *(text.rstrip().replace(" (", "\n(") for text in both))
    return table


def compared_rows(rows: Sequence[Compared], target: Outcome) -> list[dict[str, Any]]:
    """The comparison of methods with all numbers."""
    return [{"compared_at": "", **_row(target, target)}] + [
        {"compared_at": row.basis, **_row(row.outcome, target)} for row in rows
    ]
