"""Finding 1: a small fraction of channels holds the large activation differences."""

from __future__ import annotations

from functools import partial

import pandas as pd

from act_lightning.analysis.distribution import ccdfs, concentration
from act_lightning.analysis.figures import SCORE, ability_colors, ccdf_figure, dots_figure
from act_lightning.analysis.paper import SHARE_BELOW, THRESHOLD
from act_lightning.analysis.report.content import Absent, Picture, Section, Table
from act_lightning.analysis.report.evidence import Evidence, PairView
from act_lightning.analysis.report.wording import numbers, percent, percents

_CLAIM = (
    "Finding 1: “Large activation differences are concentrated in a small fraction of channels.” For Qwen2.5-7B "
    f"(Math-Instruct vs. Instruct) about {percent(SHARE_BELOW)} of the channels stay below {THRESHOLD}; in LLaMA-2 "
    "magnitudes are smaller."
)


def concentration_section(evidence: Evidence) -> list[Section | Absent]:
    """CCDF of all abilities, and how few channels hold how much."""
    section = Section("finding-1", "Finding 1: how concentrated the differences are", _CLAIM)
    for view in evidence.views:
        section.content += [*view.heading, *_content(view, section.summary)]
    return [section]


def _content(view: PairView, summary: list[str]) -> list[Picture | Table | str]:
    table, p = concentration(view.scores, view.evidence.ratio), percent(view.evidence.ratio)
    summary.append(_sentence(view, table))
    curves = ccdfs(view.scores)
    colors = ability_colors({label: one.domain for label, one in view.abilities.items()})
    shares = frozenset({"held by top p", *(name for name in table.columns if name.startswith(">"))})
    return [
        Picture(
            view.named("ccdf"),
            "Figures 1a, 6–12. CCDF: the fraction of channels whose averaged activation difference exceeds a "
            "threshold. Labels stand at the largest score of each ability.",
            partial(ccdf_figure, curves, colors, view.evidence.ratio),
        ),
        Picture(
            view.named("thresholds"),
            f"The lowest score among the top {p} of each ability, and its largest score.",
            partial(dots_figure, table[["lowest selected", "max"]], SCORE),
        ),
        Table(
            view.named("concentration"),
            f"Concentration of scores: Gini coefficient, the share of the total score that the top p = {p} of channels "
            f"hold, the lowest score among them, and the share of channels above thresholds.",
            table,
            shares,
        ),
    ]


def _sentence(view: PairView, table: pd.DataFrame) -> str:
    of = f"{view.pair.label}: the" if view.heading else "The"
    return (
        f"{of} top {percent(view.evidence.ratio)} of channels hold {percents(table['held by top p'])} of the total "
        f"score (Gini {numbers(table['Gini'])}) and begin at a score of {numbers(table['lowest selected'])}; "
        f"{percents(1 - table[f'> {THRESHOLD:g}'])} of the channels stay at or below {THRESHOLD} (paper, Qwen2.5-7B: "
        f"about {percent(SHARE_BELOW)} below)."
    )
