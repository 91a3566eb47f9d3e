"""Compare tested runs: the same items, paired by row, against the first run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from act_lightning.console import Table
from act_lightning.data.ability_data import Metric
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.intervals import (
    Interval,
    McNemar,
    mean_of_intervals,
    paired_difference,
    paired_test,
    percent,
)
from act_lightning.evaluation.results import (
    RESULTS,
    Record,
    SetResult,
    evaluation_folder,
    read_records,
    read_results,
    role_means,
)
from act_lightning.evaluation.tables import csv_table, markdown_table, rich_table

_FIELDS: dict[Metric, str] = {"exact_match": "correct", "flexible_match": "flexible_correct"}
_OTHER: dict[Metric, Metric] = {"exact_match": "flexible_match", "flexible_match": "exact_match"}
_TABLES = {"accuracy": True, "the other match": False}


class Difference(NamedTuple):
    """What a run gained over the first run on one set: the difference of shares, and McNemar's test."""

    interval: Interval
    test: McNemar


@dataclass(frozen=True)
class Comparison:
    """Results of several runs by set, and how all others differ from the first, by set, for each kind of match."""

    labels: list[str]
    results: list[dict[str, SetResult]]
    differences: dict[Metric, list[dict[str, Difference]]]


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Read the evaluations of at least two runs, and compare them with the first.

    A run is its ``default_root_dir``, or a folder of evaluations below it, if it has evaluated several models.

    Which match is a set's accuracy is the first run's choice, because all have counted both.

    Raises:
        ActError: If one was not tested, or has other sets or other rows than the first.
    """
    folders = [evaluation_folder(run) for run in runs]
    results = [read_results(folder / RESULTS) for folder in folders]
    differences: dict[Metric, list[dict[str, Difference]]] = {match: [] for match in _FIELDS}
    baseline = {name: read_records(folders[0] / f"{name}.jsonl") for name in results[0]}
    for run, folder, result in zip(runs[1:], folders[1:], results[1:], strict=True):
        if result.keys() != results[0].keys():
            problem = f"must have the sets of {runs[0]}: {', '.join(sorted(results[0]))}"
            hint = "Test both runs with the same data.evaluations."
            raise ActError(ConfigIssue(str(run), sorted(result), problem, hint))
        for name, first in results[0].items():
            result[name] = replace(result[name], metric=first.metric)
        records = {name: read_records(folder / f"{name}.jsonl") for name in results[0]}
        for name in results[0]:
            _require_same_rows(name, runs[0], baseline[name], run, records[name])
        for match, field in _FIELDS.items():
            changes = {}
            for name, before in baseline.items():
                test = paired_test(*([getattr(item, field) for item in items] for items in (before, records[name])))
                interval = paired_difference(test.gained, test.lost, len(before))
                changes[name] = Difference(((test.gained - test.lost) / len(before), *interval), test)
            differences[match].append(changes)
    names = [run.resolve().name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(run) for run in runs]
    return Comparison(labels, results, differences)


def _require_same_rows(
    name: str, first: Path, baseline: Sequence[Record], run: Path, records: Sequence[Record]
) -> None:
    value: object
    if len(records) != len(baseline):
        value, problem = f"{len(records)} rows", f"must have the {len(baseline)} rows of set {name} in {first}"
    else:
        pairs = zip(baseline, records, strict=True)
        different = [old.row for old, new in pairs if (old.row, old.id) != (new.row, new.id)]
        if not different:
            return
        value, problem = f"row {different[0]}", f"must ask what set {name} of {first} asks"
    raise ActError(ConfigIssue(str(run), value, problem, "Test both runs with the same data.evaluations."))


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Tables for the terminal: accuracies with their means, then the other match of every set."""
    tables = []
    for title, main in _TABLES.items():
        head, rows = _table(comparison, main)
        caption = f"{title} in %, 95 % intervals; Δ to {comparison.labels[0]}, +gained −lost"
        cells = [[f"{name}\n({role})", *others] for name, role, *others in rows]
        tables.append(rich_table(caption, [head[0], *head[2:]], cells, left=2))
    return tables


def comparison_markdown(comparison: Comparison) -> str:
    """The same tables as Markdown."""
    sections = []
    for title, main in _TABLES.items():
        head, rows = _table(comparison, main)
        sections.append(f"{title} in %\n\n{markdown_table(head, rows)}")
    return "\n".join(sections)


def comparison_csv(comparison: Comparison) -> str:
    """A line for each kind of match, set and run; differences are to the first run; ``metric`` is the accuracy's."""
    lines: list[dict[str, object]] = []
    for match, differences in comparison.differences.items():
        for name, first in comparison.results[0].items():
            for index, label in enumerate(comparison.labels):
                share = comparison.results[index][name].shares()[match]
                line: dict[str, object] = {
                    "set": name,
                    "role": first.role,
                    "run": label,
                    "match": match.partition("_")[0],
                    "metric": first.metric.partition("_")[0],
                }
                line |= {"correct": share.correct, "total": share.total}
                change = differences[index - 1][name] if index else None
                numbers = ("",) * 6 if change is None else (*change.interval, *change.test)
                columns = ("difference", "low", "high", "gained", "lost", "p_value")
                lines.append(line | dict(zip(columns, numbers, strict=True)))
    return csv_table(lines)


def _table(comparison: Comparison, main: bool) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: a row for each set with the match that is its accuracy, or with the other one.

    Means of accuracies of each role follow, for which there is no paired test.
    """
    first, *others = comparison.results
    matches = {name: result.metric if main else _OTHER[result.metric] for name, result in first.items()}
    rows = []
    for name, match in matches.items():
        result = first[name]
        row = [name, result.role, match.partition("_")[0], str(result.total), result.shares()[match].text]
        for other, changes in zip(others, comparison.differences[match], strict=True):
            test = changes[name].test
            change = f"{_signed_percent(changes[name].interval)} +{test.gained} −{test.lost}"
            row += [other[name].shares()[match].text, change, f"{test.p_value:.2g}"]
        rows.append(row)
    for role, mean in role_means(first).items() if main else ():
        row = ["mean", role, "", "", percent(mean)]
        names = [name for name, result in first.items() if result.role == role]
        for index, other in enumerate(others):
            intervals = [comparison.differences[matches[name]][index][name].interval for name in names]
            row += [percent(role_means(other)[role]), _signed_percent(mean_of_intervals(intervals)), ""]
        rows.append(row)
    head = ["set", "role", "match", "items", comparison.labels[0]]
    for label in comparison.labels[1:]:
        head += [label, "Δ", "p"]
    return head, rows


def _signed_percent(interval: Interval) -> str:
    value, low, high = interval
    return f"{100 * value:+.1f} ({100 * low:+.0f} to {100 * high:+.0f})"
