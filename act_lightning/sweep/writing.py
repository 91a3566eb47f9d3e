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
from act_lightning.evaluation.intervals import McNemar, percent
from act_lightning.evaluation.results import ROLES
from act_lightning.sweep.results import (
    EQUAL_SCALE,
    EQUAL_SHARE,
    MethodResult,
    Outcome,
    best_point,
    pareto_front,
    role_label,
)
from act_lightning.sweep.sweep_settings import TARGET

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
    row |= {"moved_values": outcome.rounding.moved, "unchanged_values": outcome.rounding.unchanged}
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
            test = outcome.against(target, role)
            row.append(f"+{test.gained} −{test.lost}")
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
_COLUMNS = {"compared_at": "compared at", "scale": "λ", "ratio": "p", "tuned": "fine-tuned", "parameter_share": "moved"}
_SYMBOLS = {"ratio": "p", "scale": "λ"}
_SIGNIFICANT = 0.05
_LEAST_FILLED = 0.5  # share of a grid's cells that must have a value for a heat map
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class SweepFindings:
    """The content of the page.

    Attributes:
        outcomes: The outcomes of all points.
        within: How many points of keep the best of them may lose.
        methods: The comparison of methods, the reference first; with fine-tuning, that follows.
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

    @property
    def nearest(self) -> Outcome:
        """The best point; if there is none, the one that recovers most of those that keep enough, or keeps most."""
        kept = best_point(self.outcomes, self.target, self.within)
        return kept or max(self.outcomes, key=lambda outcome: (outcome.keep, outcome.recover))

    @property
    def labels(self) -> dict[str, str]:
        """The evaluation sets of each role."""
        return {role: role_label(self.target.roles, role) for role in ROLES}


def write_page(folder: Path, findings: SweepFindings) -> Path:
    """Write the page with its figures (SVG, PNG) and tables (CSV), and return its path; an earlier page is replaced.

    Raises:
        ActError: If the folder holds something else.
    """
    best = Section("best", "The best point, and methods side by side", summary=conclusions(findings))
    methods = pd.DataFrame(methods_rows(findings.methods, findings.target)).set_index("method")
    caption = (
        "Table 3: methods at the λ and p of the first one's best point, at as many parameters, and at their best. "
        "“act” is the run's own transfer."
    )
    best.content.append(_table("methods", caption, methods, findings))
    points = Section("points", "All points")
    frame = pd.DataFrame([outcome_row(outcome, findings.target) for outcome in findings.outcomes])
    points.content.append(_table("points", "Every point that was tried.", frame.set_index("method"), findings, False))
    parts = [best, _heat_maps(findings, frame), _front_section(findings, frame), _sensitivity(findings, frame), points]
    return write_report(folder, "Sweep over λ and p", parts, _LIMITS, about=_ABOUT)


def conclusions(findings: SweepFindings) -> list[str]:
    """What the sweep shows and what it does not, in words: the best point, and the reference against other methods."""
    names = {role: " and ".join(findings.target.names(role)) for role in ROLES}
    sentences = [
        f"Keep is the accuracy on {names['keep']}, recover that on {names['recover']}.",
        _describe_best(findings),
    ]
    tuned = findings.baseline.point.tuned
    compared = [
        method
        for method in findings.methods
        if method.outcome.point.tuned == tuned and method.outcome.point.method != TARGET
    ]
    reference = compared[0].outcome
    for method in compared[1:]:
        for basis, words in ((EQUAL_SHARE, "at as many parameters"), (EQUAL_SCALE, "at the same λ")):
            if basis in method.basis:
                sentences.append(_compare(reference, method.outcome, words))
                break
    return sentences


def _describe_best(findings: SweepFindings) -> str:
    """The best point, or that there is none."""
    target, best, nearest, count = findings.target, findings.best, findings.nearest, len(findings.outcomes)
    baseline = "plain fine-tuning" if findings.baseline.point.tuned else "the target"
    limit = f"at most {findings.within:g} point{'' if findings.within == 1 else 's'} of keep"
    point = f"{nearest.point.method} at λ {nearest.point.scale:.3g}, p {nearest.point.ratio:.3g}"
    keep = f"keep {_percent(nearest.keep)} (target {_percent(target.keep)})"
    if best_point(findings.outcomes, target, findings.within) is None:
        return f"No point keeps enough: all {count:,} lose more than {limit.removeprefix('at most ')}; {point}: {keep}."
    if best is None:
        return (
            f"No point improves on {baseline}: of those that lose {limit}, the best recovers "
            f"{_percent(nearest.recover)} ({point}), and {baseline} {_percent(findings.baseline.recover)}."
        )
    test = best.against(findings.baseline, "recover")
    end = "" if test.p_value < _SIGNIFICANT else f" That it improves on {baseline} is not supported here."
    tried, share = f"{count:,} point{'' if count == 1 else 's'}", f"{best.share:.2%} of the parameters"
    gain = f"recover {_percent(best.recover)} ({baseline} {_percent(findings.baseline.recover)}): {_changes(test)}"
    return f"Best of {tried}, of those that lose {limit}: {point} ({share}): {keep}, {gain}.{end}"


def _compare(reference: Outcome, other: Outcome, words: str) -> str:
    """Whether the reference recovers more than another method, by McNemar's test on the items to recover."""
    test, first, second = reference.against(other, "recover"), reference.point.method, other.point.method
    figures = (
        f"{_percent(reference.recover)} against {_percent(other.recover)}, {_changes(test)}; keep "
        f"{_percent(reference.keep)} against {_percent(other.keep)}"
    )
    if test.p_value >= _SIGNIFICANT:
        return f"That {first} recovers more than {second} {words} is not supported here: {figures}."
    return f"{first} recovers {'more' if test.gained > test.lost else 'less'} than {second} {words}: {figures}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _changes(test: McNemar) -> str:
    return f"+{test.gained} −{test.lost} items, McNemar's test {test.p_value:.2g}"


def _table(name: str, caption: str, frame: pd.DataFrame, findings: SweepFindings, shown: bool = True) -> ReportTable:
    """A table without single sets and seconds, which are in the CSV files of the sweep, its columns in words."""
    names = dict(_COLUMNS)
    for role, label in findings.labels.items():
        names |= {role: label, f"{role}_low": f"{role} from", f"{role}_high": f"{role} to"}
    table = frame[[column for column in names if column in frame]].rename(columns=names)
    table["λ"] = [f"{scale:.3g}" for scale in table["λ"]]
    table["fine-tuned"] = ["yes" if tuned else "no" for tuned in table["fine-tuned"]]
    if not frame["tuned"].any():
        table = table.drop(columns="fine-tuned")
    shares = frozenset(names[column] for column in ("ratio", "parameter_share", *_MEANS))
    return ReportTable(name, f"{caption} From and to: 95 % interval.", table, shares, shown)


def _heat_maps(findings: SweepFindings, frame: pd.DataFrame) -> Section | Absent:
    """Keep and recover of every method, in colors that mean the same in all heat maps of a role."""
    section = Section("heat-maps", "Keep and recover over λ and p")
    grids = {
        str(method): points
        for method, points in frame.groupby("method", sort=False)
        if points["scale"].nunique() > 1 and points["ratio"].nunique() > 1
    }
    for method, points in grids.items():
        section.content.append(method)
        is_grid = len(points) >= _LEAST_FILLED * points["scale"].nunique() * points["ratio"].nunique()
        draw: Callable[..., Any] = heat_map_figure if is_grid else scatter_figure
        for role, label in findings.labels.items():
            values = pd.concat([part[role] for part in grids.values()])
            caption = f"{label} of {method}: accuracy in %. Colors mean the same for every method."
            if role == "recover" and not (points[role] > findings.target.recover + _TOLERANCE).any():
                caption += " No point recovers more than the target."
            target, limits = findings.target.mean(role)[0], (float(values.min()), float(values.max()))
            section.content.append(
                Picture(f"{role}-{method}", caption, partial(draw, points, role, label, target, limits))
            )
    return section if section.content else Absent(section.title, "no method was tried at several λ and several p.")


def _front_section(findings: SweepFindings, frame: pd.DataFrame) -> Section:
    section, front = Section("front", "What keeping costs: the Pareto front"), pareto_front(findings.outcomes)
    line = pd.DataFrame([outcome_row(outcome, findings.target) for outcome in front])
    best = None if findings.best is None else _means(findings.best)
    colors = method_colors(list(frame["method"]))
    draw = partial(front_figure, frame, line, _means(findings.target), best, colors, findings.labels)
    caption = "All points; the line joins those that no other beats in keep or recover without losing in the other."
    section.content.append(Picture("front", caption, draw))
    caption = "The points on the line."
    section.content.append(_table("front", caption, line.set_index("method"), findings, len(front) <= 12))
    return section


def _means(outcome: Outcome) -> dict[str, float]:
    return {role: outcome.mean(role)[0] for role in ROLES}


def _sensitivity(findings: SweepFindings, frame: pd.DataFrame) -> Section | Absent:
    """A figure along each of λ and p, the other having the value of the best point."""
    section = Section("sensitivity", "Sensitivity to p and to λ (Figure 5)")
    means, colors = _means(findings.target), method_colors(list(frame["method"]))
    ratios = frame.groupby("method")["ratio"].transform("nunique")
    at, whose = findings.nearest.point, "the best point's" if findings.best else "that of the point nearest to a gain"
    for along, fixed in (("ratio", "scale"), ("scale", "ratio")):
        value, owner = (at.scale if fixed == "scale" else at.ratio), whose
        if fixed == "ratio" and bool((ratios[frame["method"] == at.method] == 1).all()):  # the best ignores p
            value, owner = findings.methods[0].outcome.point.ratio, "at which methods are compared"
        at_value = (frame[fixed] - value).abs() < _TOLERANCE
        # a method that ignores p has no curve along p, and the same curve along λ at every p
        points = frame[at_value & (ratios > 1)] if along == "ratio" else frame[at_value | (ratios == 1)]
        if points[along].nunique() < 2:
            continue
        caption = (
            f"Figure 5. {' and '.join(findings.labels.values())} against {_SYMBOLS[along]} at {_SYMBOLS[fixed]} = "
            f"{value:g}, {owner}, with 95 % intervals."
        )
        key = "along-p" if along == "ratio" else "along-lambda"
        table = points.sort_values(["method", along], kind="stable").set_index("method")
        draw = partial(sensitivity_figure, points, along, means, colors, findings.labels)
        section.content += [Picture(key, caption, draw), _table(key, "The same in numbers.", table, findings, False)]
    return section if section.content else Absent(section.title, "no method was tried at several λ or several p.")
