"""Runs side by side: the same items, paired by row, against the first run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.intervals import McNemar, mcnemar, mean_of, paired_difference
from act_lightning.evaluation.results import (
    Record,
    SetResult,
    markdown_table,
    read_records,
    read_results,
    role_means,
    share_shown,
    shown,
)

_BOTH = ("exact match", "flexible match")


@dataclass(frozen=True)
class Difference:
    """What one run gained over the baseline on one set.

    Attributes:
        value: Difference of the two shares.
        low: Lower bound of its 95 % interval.
        high: Upper bound.
        test: McNemar's test, with the items gained and lost.
    """

    value: float
    low: float
    high: float
    test: McNemar


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several runs, the baseline first.

    Attributes:
        labels: What each run is called.
        results: Of each run, by set.
        exact: Differences of exact matches from the baseline, by set, of every other run.
        flexible: The same of flexible matches.
    """

    labels: list[str]
    results: list[dict[str, SetResult]]
    exact: list[dict[str, Difference]]
    flexible: list[dict[str, Difference]]


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Read the evaluations of runs and pair their items.

    Args:
        runs: Their folders (``default_root_dir``), at least two, the baseline first.

    Raises:
        ActError: If one was not tested, or has other sets or other rows than the first.
    """
    results = [read_results(run / "evaluations" / "results.json") for run in runs]
    records = [{name: read_records(run / "evaluations" / f"{name}.jsonl") for name in results[0]} for run in runs[:1]]
    for run, found in zip(runs[1:], results[1:], strict=True):
        _check_sets(runs[0], results[0], run, found)
        records.append({name: read_records(run / "evaluations" / f"{name}.jsonl") for name in results[0]})
        for name in results[0]:
            _check_rows(name, runs[0], records[0][name], run, records[-1][name])
    pairs = [{name: (records[0][name], other[name]) for name in results[0]} for other in records[1:]]
    exact, flexible = (
        [{name: difference(_verdicts(a, kind), _verdicts(b, kind)) for name, (a, b) in one.items()} for one in pairs]
        for kind in ("correct", "flexible_correct")
    )
    return Comparison(_labels(runs), results, exact, flexible)


def difference(before: Sequence[bool], after: Sequence[bool]) -> Difference:
    """What the second gained over the first, on the same items.

    >>> difference([True, False, False, False], [False, True, True, False]).test
    McNemar(gained=2, lost=1, p_value=1.0)

    Args:
        before: Verdicts of the first.
        after: Verdicts of the second.
    """
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    low, high = paired_difference(gained, lost, len(before))
    return Difference((gained - lost) / len(before), low, high, mcnemar(gained, lost))


def _verdicts(records: Sequence[Record], kind: str) -> list[bool]:
    return [getattr(record, kind) for record in records]


def _labels(runs: Sequence[Path]) -> list[str]:
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _check_sets(first: Path, wanted: dict[str, SetResult], run: Path, found: dict[str, SetResult]) -> None:
    if found.keys() != wanted.keys():
        problem = f"must have the sets of {first}: {', '.join(sorted(wanted))}"
        raise ActError(ConfigIssue(str(run), sorted(found), problem, "Test both runs with the same data.evaluations."))


def _check_rows(name: str, first: Path, wanted: Sequence[Record], run: Path, found: Sequence[Record]) -> None:
    if [(record.row, record.id) for record in found] == [(record.row, record.id) for record in wanted]:
        return
    if len(found) != len(wanted):
        problem = f"must have the {len(wanted)} rows of set {name} in {first}"
        value: object = f"{len(found)} rows"
    else:
        row = next(old.row for old, new in zip(wanted, found, strict=True) if (old.row, old.id) != (new.row, new.id))
        problem, value = f"must ask what set {name} of {first} asks", f"row {row}"
    raise ActError(ConfigIssue(str(run), value, problem, "Test both runs with the same data.evaluations."))


_HEAD = ("set", "role", "items")


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Tables for the terminal: exact matches, then flexible ones."""
    found = []
    for title in _BOTH:
        head, rows = _rows(comparison, title)
        caption = f"{title} in %, 95 % intervals; Δ to {comparison.labels[0]}, +gained −lost"
        table = Table(title=caption, box=SIMPLE, pad_edge=False)
        for column in (head[0], *head[2:]):
            table.add_column(column, justify="left" if column == _HEAD[0] else "right", no_wrap=True)
        for name, role, *cells in rows:
            shown_below = (cell.replace(" (", "\n(").replace(") +", ")\n+") for cell in cells)
            table.add_row(f"{name}\n({role})", *shown_below)
        found.append(table)
    return found


def comparison_markdown(comparison: Comparison) -> str:
    """The same as Markdown."""
    return "\n".join(f"{title} in %\n\n{markdown_table(*_rows(comparison, title))}" for title in _BOTH)


def comparison_csv(comparison: Comparison) -> str:
    """A line for each set, run and way of reading answers; differences are to the first run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["set", "role", "run", "match", "correct", "total", "difference", "low", "high", "gained", "lost", "p_value"]
    writer.writerow(head)
    for title, name, place in product(_BOTH, comparison.results[0], range(len(comparison.labels))):
        right, total = _counts(comparison.results[place][name], title)
        changed: tuple[object, ...] = ("",) * 6
        if place:
            one = _differences(comparison, title)[place - 1][name]
            changed = (one.value, one.low, one.high, *one.test)
        role, label = comparison.results[0][name].role, comparison.labels[place]
        writer.writerow([name, role, label, title.split()[0], right, total, *changed])
    return text.getvalue()


def _rows(comparison: Comparison, title: str) -> tuple[list[str], list[list[str]]]:
    first, *others = comparison.labels
    head = [*_HEAD, first, *(column for label in others for column in (label, "Δ", "p"))]
    rows = [_row(comparison, title, name) for name in comparison.results[0]]
    return head, rows + (_mean_rows(comparison) if title == _BOTH[0] else [])


def _row(comparison: Comparison, title: str, name: str) -> list[str]:
    first = comparison.results[0][name]
    row = [name, first.role, str(first.total), share_shown(*_counts(first, title))]
    for found, differences in zip(comparison.results[1:], _differences(comparison, title), strict=True):
        one = differences[name]
        change = f"{_change(one.value, one.low, one.high)} +{one.test.gained} −{one.test.lost}"
        row += [share_shown(*_counts(found[name], title)), change, f"{one.test.p_value:.2g}"]
    return row


def _mean_rows(comparison: Comparison) -> list[list[str]]:
    """Means of the sets of each role, and of the differences on them; of these there is no paired test."""
    means = [role_means(results) for results in comparison.results]
    rows = []
    for role, mean in means[0].items():
        row = ["mean", role, "", shown(*mean)]
        for other, differences in zip(means[1:], comparison.exact, strict=True):
            of_role = [one for name, one in differences.items() if comparison.results[0][name].role == role]
            row += [shown(*other[role]), _change(*mean_of([(one.value, one.low, one.high) for one in of_role])), ""]
        rows.append(row)
    return rows


def _change(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} ({100 * low:+.0f} to {100 * high:+.0f})"


def _counts(result: SetResult, title: str) -> tuple[int, int]:
    return result.shares()[title.replace(" ", "_")]


def _differences(comparison: Comparison, title: str) -> list[dict[str, Difference]]:
    return comparison.exact if title == _BOTH[0] else comparison.flexible
