"""What a sweep leaves: rows of its tables, and a page of figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from act_lightning.analysis.figures.sweeps import (
    front_figure,
    heat_map_figure,
    method_colors,
    scatter_figure,
    sensitivity_figure,
)
from act_lightning.analysis.report.page import Absent, Picture, ReportTable, Section, write_report
from act_lightning.evaluation.intervals import percent
from act_lightning.evaluation.results import ROLES
from act_lightning.sweep.results import MethodResult, Outcome, best_point, pareto_front

METHODS_HEAD = ("", "compared at", "λ", "p", "moved", "keep", "recover", "keep: gained, lost", "recover: gained, lost")


def outcome_row(outcome: Outcome, target: Outcome) -> dict[str, Any]:
    """A point with all numbers: keep and recover with intervals, counts of each set, and McNemar's test on each set."""
    point = outcome.point
    row: dict[str, Any] = {
        "method": point.method,
        "scale": point.scale,
        "ratio": point.ratio,
        "tuned": point.tuned,
        "parameter_share": outcome.share,
    }
    for role in ROLES:
        row |= zip((role, f"{role}_low", f"{role}_high"), outcome.mean(role), strict=True)
    for name in outcome.scores.digits:
        row[f"{name}_correct"], row[f"{name}_total"] = outcome.scores.share(name)
        test = ("", "", "") if point == target.point else outcome.scores.against(target.scores, name)
        row |= zip((f"{name}_gained", f"{name}_lost", f"{name}_p_value"), test, strict=True)
    return row | {f"seconds_{part}": round(seconds, 4) for part, seconds in outcome.seconds.items()}


def results_as_json(rows: Sequence[Mapping[str, Any]], best: Outcome | None, front: Sequence[Outcome]) -> str:
    """The target (the first of the rows), all points, which of them are on the Pareto front, and the best."""
    content = {
        "target": rows[0],
        "points": rows[1:],
        "front": [asdict(outcome.point) for outcome in front],
        "best": None if best is None else asdict(best.point),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def methods_rows(methods: Sequence[MethodResult], target: Outcome) -> list[dict[str, Any]]:
    """The comparison of methods with all numbers, the target first."""
    rows = [{"compared_at": "", **outcome_row(target, target)}]
    return rows + [{"compared_at": method.basis, **outcome_row(method.outcome, target)} for method in methods]


def methods_cells(methods: Sequence[MethodResult], target: Outcome) -> list[list[str]]:
    """The comparison of methods as text under :data:`METHODS_HEAD`, the target first."""
    rows = [["target", "", "", "", "", *(percent(target.mean(role)) for role in ROLES), "", ""]]
    for method in methods:
        outcome, point = method.outcome, method.outcome.point
        label = f"{point.method}, then fine-tuning" if point.tuned else point.method
        row = [label, method.basis, f"{point.scale:.3g}", f"{point.ratio:.3g}", f"{outcome.share:.2%}"]
        row += [percent(outcome.mean(role)) for role in ROLES]
        for role in ROLES:
            names = [name for name in outcome.roles if outcome.roles[name] == role]
            tests = [outcome.scores.against(target.scores, name) for name in names]
            row.append(f"+{sum(test.gained for test in tests)} −{sum(test.lost for test in tests)}")
        rows.append(row)
    return rows


_ABOUT = (
    "A sweep over scaling factor λ and transfer ratio p, as in Figure 5 and Table 3 of “Ability Transfer and Recovery "
    "via Modularized Parameters Localization” (arXiv 2601.09398)."
)
_LIMITS = (
    "What another seed would give: intervals are those of the items asked, one model each.",
    "How the best point fares on questions that did not choose it: the best of many is flattered by luck.",
)
_MEANS = tuple(f"{role}{bound}" for role in ROLES for bound in ("", "_low", "_high"))
_SHARES = frozenset({"parameter_share", *_MEANS})  # columns that hold shares
_SYMBOLS = {"ratio": "p", "scale": "λ"}
_PAPER_VALUES = {"ratio": 0.01, "scale": 0.5}
_LEAST_FILLED = 0.5  # share of a grid's cells that must have a value for a heat map
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class SweepFindings:
    """The content of the page.

    Attributes:
        outcomes: The outcomes of all points.
        within: How many points of keep the best of them may lose.
        baseline: What the best must recover more than: the target, or the target after plain fine-tuning.
    """

    target: Outcome
    outcomes: Sequence[Outcome]
    within: float
    methods: Sequence[MethodResult]
    baseline: Outcome

    @property
    def best(self) -> Outcome | None:
        """The best point, if one keeps enough and recovers more than the baseline."""
        best = best_point(self.outcomes, self.target, self.within)
        return best if best is not None and best.recover > self.baseline.recover + _TOLERANCE else None


def write_page(folder: Path, findings: SweepFindings) -> Path:
    """Write the page with its figures (SVG, PNG) and tables (CSV), and return its path; an earlier page is replaced.

    Raises:
        ActError: If the folder holds something else.
    """
    best = Section("best", "The best point, and methods side by side", summary=[describe_best(findings)])
    methods = pd.DataFrame(methods_rows(findings.methods, findings.target)).set_index("method")
    caption = "Table 3: methods at the λ and p of the first one's best point, at as many parameters, and at their best."
    best.content.append(ReportTable("methods", caption, _without_details(methods), _SHARES))
    points = Section("points", "All points")
    frame = pd.DataFrame([outcome_row(outcome, findings.target) for outcome in findings.outcomes])
    table = _without_details(frame.set_index("method"))
    points.content.append(ReportTable("points", "Every point that was tried.", table, _SHARES, shown=False))
    parts = [best, _heat_maps(findings, frame), _front_section(findings, frame), _sensitivity(findings, frame), points]
    return write_report(folder, "Sweep over λ and p", parts, _LIMITS, about=_ABOUT)


def describe_best(findings: SweepFindings) -> str:
    """The best point in words."""
    target, best = findings.target, findings.best
    limit = f"keep at most {findings.within:g} points below the target's {100 * target.keep:.1f} %"
    if best is None:
        if (kept := best_point(findings.outcomes, target, findings.within)) is None:
            return f"No point has {limit}."
        name = "plain fine-tuning" if findings.baseline.point.tuned else "the target"
        return (
            f"No gain: of the points with {limit}, the best recovers {100 * kept.recover:.1f} %, and {name} "
            f"{100 * findings.baseline.recover:.1f} %."
        )
    point = best.point
    return (
        f"Best of {len(findings.outcomes):,} points with {limit}: {point.method} at λ {point.scale:.3g}, "
        f"p {point.ratio:.3g} ({best.share:.2%} of the parameters): keep {100 * best.keep:.1f} %, "
        f"recover {100 * best.recover:.1f} % (target: {100 * target.recover:.1f} %)."
    )


def _without_details(frame: pd.DataFrame) -> pd.DataFrame:
    """A table without single sets and seconds, which are in the CSV files of the sweep."""
    columns = ("compared_at", "scale", "ratio", "tuned", "parameter_share", *sorted(_MEANS))
    return frame[[name for name in columns if name in frame]]


def _heat_maps(findings: SweepFindings, frame: pd.DataFrame) -> Section | Absent:
    section = Section("heat-maps", "Keep and recover over λ and p")
    for method, points in frame.groupby("method", sort=False):
        scales, ratios = points["scale"].nunique(), points["ratio"].nunique()
        if ratios < 2 or scales < 2:
            continue
        section.content.append(str(method))
        is_grid = len(points) >= _LEAST_FILLED * ratios * scales
        draw: Callable[..., Any] = heat_map_figure if is_grid else scatter_figure
        for role in ROLES:
            caption = f"{role.capitalize()} of {method}: the mean accuracy of the sets with this role."
            figure = partial(draw, points, role, findings.target.mean(role)[0])
            section.content.append(Picture(f"{role}-{method}", caption, figure))
    return section if section.content else Absent(section.title, "no method was tried at several λ and several p.")


def _front_section(findings: SweepFindings, frame: pd.DataFrame) -> Section:
    section, front = Section("front", "What keeping costs: the Pareto front"), pareto_front(findings.outcomes)
    line = pd.DataFrame([outcome_row(outcome, findings.target) for outcome in front])
    best = None if findings.best is None else _means(findings.best)
    draw = partial(front_figure, frame, line, _means(findings.target), best, method_colors(list(frame["method"])))
    caption = "All points; the line joins those that no other beats in keep or recover without losing in the other."
    section.content.append(Picture("front", caption, draw))
    table = _without_details(line.set_index("method"))
    section.content.append(ReportTable("front", "The points on the line.", table, _SHARES, shown=len(front) <= 12))
    return section


def _means(outcome: Outcome) -> dict[str, float]:
    return {role: outcome.mean(role)[0] for role in ROLES}


def _sensitivity(findings: SweepFindings, frame: pd.DataFrame) -> Section | Absent:
    """A figure along each of λ and p, the other having the paper's value, or the nearest to it that was tried."""
    section = Section("sensitivity", "Sensitivity to p and to λ (Figure 5)")
    means, colors = _means(findings.target), method_colors(list(frame["method"]))
    first = frame[frame["method"] == frame["method"].iloc[0]]
    ratios = frame.groupby("method")["ratio"].transform("nunique")
    for along, fixed in (("ratio", "scale"), ("scale", "ratio")):
        paper = _PAPER_VALUES[fixed]
        value = float(min(first[fixed], key=lambda tried, paper=paper: (abs(tried - paper), tried)))  # type: ignore[misc]
        at_value = (frame[fixed] - value).abs() < _TOLERANCE
        # a method that ignores p has no curve along p, and the same curve along λ at every p
        points = frame[at_value & (ratios > 1)] if along == "ratio" else frame[at_value | (ratios == 1)]
        if points[along].nunique() < 2:
            continue
        note = "" if abs(value - paper) < _TOLERANCE else f" (the paper's is {paper:g})"
        caption = (
            f"Figure 5. Keep and recover against {_SYMBOLS[along]} at {_SYMBOLS[fixed]} = {value:g}{note}, "
            "with 95 % intervals."
        )
        key = "along-p" if along == "ratio" else "along-lambda"
        table = points[["method", along, *_MEANS]].sort_values(["method", along], kind="stable").set_index("method")
        draw = partial(sensitivity_figure, points, along, means, colors)
        section.content += [Picture(key, caption, draw), ReportTable(key, caption, table, _SHARES, shown=False)]
    return section if section.content else Absent(section.title, "no method was tried at several λ or several p.")
