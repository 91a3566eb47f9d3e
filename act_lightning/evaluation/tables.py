"""Tables of results, for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE

from act_lightning.console import Table
from act_lightning.escaping import csv_cell, markdown_text
from act_lightning.evaluation.intervals import Interval, McNemar, Share, mean_of_shares, paired_test, percent
from act_lightning.evaluation.results import ROLES, Results, role_means

FINE_TUNING_ALONE = "fine-tuning alone"
"""The row of a comparison that stands for a fit without a transfer."""


def rich_table(
    title: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: int = 1,
    wrap: int = 0,
    bold: int = 0,
    pad_edge: bool = False,
) -> Table:
    """Any table for the terminal; intervals and counts in a cell go to lines of their own.

    The first ``left`` columns are left-justified, the first ``wrap`` may be wrapped, and the last ``bold`` are bold.
    """
    table = Table(title=title, box=SIMPLE, pad_edge=pad_edge)
    for index, name in enumerate(head):
        style = "bold" if index >= len(head) - bold else None
        table.add_column(name, justify="left" if index < left else "right", no_wrap=index >= wrap, style=style)
    for row in rows:
        table.add_row(*(cell.replace(" (", "\n(").replace(") +", ")\n+") for cell in row))
    return table


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Any table as Markdown."""
    lines = [list(map(markdown_text, head)), ["---"] * len(head), *(map(markdown_text, row) for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def csv_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Any table as CSV, with the columns of all rows."""
    lines, text = list(rows), io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(
        map(csv_cell, line) for line in (names, *([line.get(name, "") for name in names] for line in lines))
    )
    return text.getvalue()


def results_as_csv(results: Results) -> str:
    """A line for each set: every count, and every share with its bounds; empty where there is none."""
    lines = []
    for name, result in results.items():
        line: dict[str, object] = {"set": name, **asdict(result)}
        line.pop("tokens")
        line |= zip(("tokens", "tokens_low", "tokens_high"), result.tokens, strict=True)
        for share, bounds in result.bounds().items():
            line |= {f"{share}_{'share' if key == 'value' else key}": value for key, value in bounds.items()}
        lines.append(line)
    return csv_table(lines)


def results_as_markdown(results: Results) -> str:
    """A table for a model card: shares in % with their 95 % intervals, then the means of each role."""
    rows = _text_rows(results)
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])


def results_table(results: Results) -> Table:
    """The same table for the terminal, without columns that are empty, repeat the accuracy, or stand in files only."""
    rows = _text_rows(results)
    left_out = ["set", "role", "right if answered", "tokens"]
    matches, sets = ("exact match", "flexible"), rows[: len(results)]
    left_out += [match for match in matches if all(row[match] == row["accuracy"] for row in sets)]
    columns = [name for name in rows[0] if name not in left_out and any(row[name] for row in rows)]
    head = [name.replace(" ", "\n") for name in ("set", *columns)]
    cells = [[f"{row['set']}\n({row['role']})", *(row[name] for name in columns)] for row in rows]
    return rich_table("Shares in %, below them their 95 % intervals", head, cells)


def validation_table(metrics: Mapping[str, Any]) -> Table:
    """A table for the terminal: loss, perplexity and token accuracy of every validation set, and their means."""
    measures, groups = ("loss", "perplexity", "accuracy"), {"val": "mean", "val_keep": "mean (keep)"}
    names = [key.partition("/")[2] for key in metrics if key.startswith("val_loss/")]
    keys = {name: [f"val_{measure}/{name}" for measure in measures] for name in names}
    for group, title in (groups | {"val_recover": "mean (recover)"}).items():
        if len(names) > 1 and f"{group}_loss" in metrics:
            keys[title] = [f"{group}_{measure}" for measure in measures]
    cells = []
    for name, of_set in keys.items():
        loss, perplexity, accuracy = (float(metrics[key]) for key in of_set)
        cells.append([name, f"{loss:.4f}", f"{perplexity:.4g}", f"{100 * accuracy:.1f}"])
    return rich_table("Answer tokens", ["set", "loss", "perplexity", "accuracy in %"], cells)


def _text_rows(results: Results) -> list[dict[str, str]]:
    rows = []
    for name, result in results.items():
        shares = {key: share.text for key, share in result.shares().items()}
        rows.append(
            {
                "set": name,
                "role": result.role,
                "items": str(result.total),
                "accuracy": result.accuracy.text,
                "exact match": shares["exact_match"],
                "flexible": shares["flexible_match"],
                "answered": shares["answered"],
                "right if answered": shares["accuracy_among_answered"],
                "chance": f"{100 * result.chance:.1f}" if result.chance else "",
                "in language": shares.get("in_language", ""),
                "cut": shares["truncated"],
                "tokens": f"{result.tokens[0]:.0f}",
            }
        )
    for role, mean in role_means(results).items():
        rows.append(dict.fromkeys(rows[0], "") | {"set": "mean", "role": role, "accuracy": percent(mean)})
    return rows


@dataclass(frozen=True)
class ItemScores:
    """Which items of each evaluation set a model answered correctly by its metric: a digit 0 or 1 for each item."""

    digits: Mapping[str, str]

    def share(self, name: str) -> Share:
        """The accuracy in a set."""
        return Share(self.digits[name].count("1"), len(self.digits[name]))

    def mean(self, names: Iterable[str]) -> Interval:
        """The mean accuracy of several sets, each with the same weight, with its 95 % interval."""
        return mean_of_shares([self.share(name) for name in names])

    def against(self, baseline: ItemScores, *names: str) -> McNemar:
        """McNemar's test against another model on the items of one or several sets."""
        before, after = ("".join(scores.digits[name] for name in names) for scores in (baseline, self))
        return paired_test(before, after)


@dataclass(frozen=True)
class ModelRow:
    """One model of a comparison.

    Attributes:
        model: What it is called.
        share: The share of the parameters that a transfer changed, if there was one.
        scores: Which items it answered correctly.
        module_types: By type of module, the number of parameters that a transfer changed.
    """

    model: str
    share: float | None
    scores: ItemScores
    module_types: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, strings and numbers."""
        counts = {name: self.scores.share(name) for name in self.scores.digits}
        return {
            "model": self.model,
            "share": self.share,
            "correct": {name: share.correct for name, share in counts.items()},
            "total": {name: share.total for name, share in counts.items()},
            "right": dict(self.scores.digits),
            "module_types": dict(self.module_types),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelRow:
        """The inverse of :meth:`to_json`."""
        scores = ItemScores(values["right"])
        return cls(values["model"], values["share"], scores, values.get("module_types", {}))


def models_table(rows: Sequence[ModelRow], roles: Mapping[str, str]) -> Table:
    """A table for the terminal: a row per model, a column per set with its 95 % interval, and means over sets.

    There must be a first row; the others are compared with it, item by item.
    """
    by_role = {role: [name for name in roles if roles[name] == role] for role in ROLES}
    names = [name for role in ROLES for name in by_role[role]]
    averaged = [role for role in ROLES if len(by_role[role]) > 1]
    cells = []
    for row in rows:
        cells.append([row.model, "" if row.share is None else f"{row.share:.2%}"])
        for name in names:
            value, low, high = row.scores.share(name).interval
            test = _paired_with_first(rows, row, name)
            changes = "" if test is None else f"\n+{test.gained} −{test.lost}"
            cells[-1].append(f"{100 * value:.1f}  {100 * low:.0f}–{100 * high:.0f}{changes}")
        cells[-1] += [f"{100 * row.scores.mean(by_role[role])[0]:.1f}" for role in averaged]
    title = f"accuracy in %, its 95 % interval, and items +gained −lost against {rows[0].model}"
    head = ["", "moved", *(f"{name}\n({roles[name]})" for name in names), *(f"{role}\nmean" for role in averaged)]
    return rich_table(title, head, cells, bold=len(averaged), pad_edge=True)


def comparison_findings(rows: Sequence[ModelRow], roles: Mapping[str, str]) -> list[str]:
    """What a comparison says, in words: what each transfer moved and did, and what it is worth before fine-tuning.

    A change is called so when McNemar's exact test over the items of all sets of a role gives p < 0.05.
    """
    by_name, target, end = {row.model: row for row in rows}, rows[0], " + fine-tuning"
    alone = by_name.get(FINE_TUNING_ALONE)
    lines = []
    for row in rows:
        if row.module_types:
            moved = sum(row.module_types.values())
            largest = Counter(row.module_types).most_common(5)
            shares = [f"{name} {count / moved:.0%}" for name, count in largest if count / moved >= 0.01]
            lines.append(f"{row.model} moved {row.share:.2%} of the parameters, mostly of {', '.join(shares)}.")
            lines.append(f"  Without fine-tuning: {_changes(row, target, roles, 'the target')}.")
            tuned = by_name.get(f"{row.model}{end}")
            if alone is not None and tuned is not None:
                lines.append(f"  With fine-tuning: {_changes(tuned, alone, roles, 'fine-tuning alone')}.")
    return lines


def _changes(row: ModelRow, baseline: ModelRow, roles: Mapping[str, str], name: str) -> str:
    texts = []
    for role in reversed(ROLES):
        sets = [each for each, its_role in roles.items() if its_role == role]
        if sets:
            before, after = (100 * scores.mean(sets)[0] for scores in (baseline.scores, row.scores))
            is_change = row.scores.against(baseline.scores, *sets).p_value < 0.05
            verdict = ("higher" if after > before else "lower") if is_change else "no clear difference"
            texts.append(f"{role} {after:.1f} ({name}: {before:.1f}; {verdict})")
    return ", ".join(texts)


def models_csv(rows: Sequence[ModelRow], roles: Mapping[str, str]) -> str:
    """The same as CSV: a line per model and set, with counts, accuracy and the bounds of its 95 % interval."""
    lines = []
    for row in rows:
        for name, role in roles.items():
            share = row.scores.share(name)
            line = {"model": row.model, "parameter_share": "" if row.share is None else row.share}
            line |= {"set": name, "role": role, "correct": share.correct, "total": share.total}
            line |= zip(("accuracy", "low", "high"), share.interval, strict=True)
            test = _paired_with_first(rows, row, name) or ("", "", "")
            lines.append(line | dict(zip(("gained", "lost", "p_value"), test, strict=True)))
    return csv_table(lines)


def _paired_with_first(rows: Sequence[ModelRow], row: ModelRow, name: str) -> McNemar | None:
    """McNemar's test against the first row; ``None`` for the first row, and if a resumed fit has other items."""
    same_items = len(row.scores.digits.get(name, "")) == len(rows[0].scores.digits.get(name, ""))
    return row.scores.against(rows[0].scores, name) if row is not rows[0] and same_items else None
