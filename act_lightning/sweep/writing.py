"""What a sweep leaves: results as CSV and JSON, the comparison of methods, and a page of figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from act_lightning.analysis.figures.sweeps import (
    front_figure,
    heat_map_figure,
    method_colors,
    scatter_figure,
    sensitivity_figure,
)
from act_lightning.analysis.report.content import Absent, Picture, ReportTable, Section
from act_lightning.analysis.report.page import write_report
from act_lightning.evaluation.intervals import percent
from act_lightning.evaluation.tables import markdown_table
from act_lightning.sweep.results import ROLES, Compared, Outcome, pareto_front

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
    first = ("target", "", "", "", "", *(percent(target.mean(role)) for role in ROLES), "", "")
    return [first, *(_cells(row, target) for row in rows)]


def _cells(row: Compared, target: Outcome) -> tuple[str, ...]:
    one, at = row.outcome, row.outcome.point
    name = f"{at.method}, then fine-tuning" if at.tuned else at.method
    means, changes = (percent(one.mean(role)) for role in ROLES), (_changes(one, target, role) for role in ROLES)
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


_ABOUT = (
    "A sweep over scaling factor λ and transfer ratio p, as in Figure 5 and Table 3 of “Ability Transfer and Recovery "
    "via Modularized Parameters Localization” (arXiv 2601.09398)."
)
_LIMITS = (
    "What another seed would give: intervals are those of the items asked, one model each.",
    "How the best point fares on questions that did not choose it: the best of many is flattered by luck.",
)
_SHARES = frozenset({"parameter_share", *(f"{role}{end}" for role in ROLES for end in ("", "_low", "_high"))})
_PAPERS_SCALE, _PAPERS_RATIO = 0.5, 0.01
_FILLED = 0.5  # the share of a grid's cells that must be there for a heat map
_NEAR = 1e-9


@dataclass(frozen=True)
class SweepFindings:
    """What the page shows.

    Attributes:
        target: What the target itself gave.
        outcomes: What was found at all points.
        best: The best of them, if one keeps enough.
        within: How many points of keep it may lose.
        compared: The comparison of methods.
    """

    target: Outcome
    outcomes: Sequence[Outcome]
    best: Outcome | None
    within: float
    compared: Sequence[Compared]

    @property
    def untouched(self) -> dict[str, float]:
        """Keep and recover of the target."""
        return means(self.target)

    @property
    def colors(self) -> dict[str, str]:
        """A color for each method."""
        return method_colors([one.point.method for one in self.outcomes])

    def frame(self, outcomes: Sequence[Outcome] | None = None) -> pd.DataFrame:
        """A row for each point; of all, unless some are named."""
        return pd.DataFrame(rows_of(self.outcomes if outcomes is None else outcomes, self.target))


def means(outcome: Outcome) -> dict[str, float]:
    """Keep and recover."""
    return {role: outcome.mean(role)[0] for role in ROLES}


def write_page(folder: Path, found: SweepFindings) -> Path:
    """Write the page with its figures (SVG, PNG) and tables (CSV).

    Args:
        folder: Where; an earlier page is replaced.
        found: What it shows.

    Returns:
        ``index.html``.

    Raises:
        ActError: If the folder holds something else.
    """
    parts: list[Section | Absent] = [_best(found), *_heat_maps(found), _front(found), *_curves(found), _points(found)]
    return write_report(folder, "Sweep over λ and p", parts, _LIMITS, about=_ABOUT)


def _best(found: SweepFindings) -> Section:
    section = Section("best", "The best point, and methods side by side")
    section.summary.append(sentence(found))
    frame = pd.DataFrame(compared_rows(found.compared, found.target)).set_index("method")
    caption = "Table 3: methods at the λ and p of the first one's best point, at as many parameters, and at their best."
    section.content.append(ReportTable("methods", caption, _short(frame), _SHARES))
    return section


def _short(frame: pd.DataFrame) -> pd.DataFrame:
    """Without what the CSV files of the sweep tell better: single sets, seconds."""
    named = ("compared_at", "scale", "ratio", "tuned", "parameter_share")
    return frame[[name for name in (*named, *sorted(_SHARES - {"parameter_share"})) if name in frame]]


def sentence(found: SweepFindings) -> str:
    """The best point in words."""
    limit = f"keep at most {found.within:g} points below the target's {100 * found.target.keep:.1f} %"
    if found.best is None:
        return f"No point has {limit}."
    at, one = found.best.point, found.best
    return (
        f"Best of {len(found.outcomes):,} points with {limit}: {at.method} at λ {at.scale:.3g}, p {at.ratio:.3g} "
        f"({one.share:.2%} of the parameters): keep {100 * one.keep:.1f} %, recover {100 * one.recover:.1f} % (target: "
        f"{100 * found.target.recover:.1f} %)."
    )


def _heat_maps(found: SweepFindings) -> list[Section | Absent]:
    section = Section("heat-maps", "Keep and recover over λ and p")
    for method, part in found.frame().groupby("method", sort=False):
        if part["ratio"].nunique() > 1 and part["scale"].nunique() > 1:
            section.content += [str(method), *(_map(str(method), part, role, found) for role in ROLES)]
    if section.content:
        return [section]
    return [Absent(section.title, "no method was tried at several λ and several p.")]


def _map(method: str, part: pd.DataFrame, role: str, found: SweepFindings) -> Picture:
    cells = part["ratio"].nunique() * part["scale"].nunique()
    draw: Callable[..., object] = heat_map_figure if len(part) >= _FILLED * cells else scatter_figure
    caption = f"{role.capitalize()} of {method}: the mean exact match of the sets with this role."
    return Picture(f"{role}-{method}", caption, partial(draw, part, role, found.untouched[role]))  # type: ignore[arg-type]


def _front(found: SweepFindings) -> Section:
    section, front = Section("front", "What keeping costs: the Pareto front"), pareto_front(found.outcomes)
    best = None if found.best is None else means(found.best)
    draw = partial(front_figure, found.frame(), found.frame(front), found.untouched, best, found.colors)
    caption = "All points; the line joins those that no other beats in keep or recover without losing in the other."
    section.content.append(Picture("front", caption, draw))
    table = _short(found.frame(front).set_index("method"))
    section.content.append(ReportTable("front", "The points on the line.", table, _SHARES, shown=len(front) <= 12))
    return section


def _curves(found: SweepFindings) -> list[Section | Absent]:
    section = Section("sensitivity", "Sensitivity to p and to λ (Figure 5)")
    section.content += _along("ratio", "scale", _PAPERS_SCALE, found) + _along("scale", "ratio", _PAPERS_RATIO, found)
    if section.content:
        return [section]
    return [Absent(section.title, "no method was tried at several λ or several p.")]


def _along(along: str, fixed: str, papers: float, found: SweepFindings) -> list[Picture | ReportTable | str]:
    """A figure along one of λ and p, the other being what the paper has, or the nearest to it that was tried."""
    frame = found.frame()
    tried = frame[frame["method"] == frame["method"].iloc[0]][fixed]
    value = float(min(tried, key=lambda one: (abs(one - papers), one)))
    without = frame["method"].isin([name for name, part in frame.groupby("method") if part["ratio"].nunique() == 1])
    at = (frame[fixed] - value).abs() < _NEAR
    shown = frame[at & ~without] if along == "ratio" else frame[at | without]
    if shown[along].nunique() < 2:
        return []
    name = f"{'p' if fixed == 'ratio' else 'λ'} = {value:g}"
    note = "" if abs(value - papers) < _NEAR else f" (the paper's is {papers:g})"
    other = "p" if along == "ratio" else "λ"
    caption = f"Figure 5. Keep and recover against {other} at {name}{note}, with 95 % intervals."
    key = f"{'along-p' if along == 'ratio' else 'along-lambda'}"
    columns = ["method", along, *(f"{role}{end}" for role in ROLES for end in ("", "_low", "_high"))]
    table = shown[columns].sort_values(["method", along], kind="stable").set_index("method")
    draw = partial(sensitivity_figure, shown, along, found.untouched, found.colors)
    return [Picture(key, caption, draw), ReportTable(key, caption, table, _SHARES, shown=False)]


def _points(found: SweepFindings) -> Section:
    section = Section("points", "All points")
    table = _short(found.frame().set_index("method"))
    section.content.append(ReportTable("points", "Every point that was tried.", table, _SHARES, shown=False))
    return section
