"""Finding 4: masks of one ability agree across pairs of models."""

from __future__ import annotations

from functools import partial

import pandas as pd

from act_lightning.analysis.figures import dots_figure
from act_lightning.analysis.overlaps import consistency
from act_lightning.analysis.report.content import Absent, Picture, Section, Table
from act_lightning.analysis.report.evidence import Evidence
from act_lightning.analysis.report.wording import percent, percents

_CLAIM = (
    "Finding 4: “Ability-specific channels exhibit consistency after fine-tuning.” Figure 3 compares "
    "Math-Instruct vs. Instruct with Coder-Instruct vs. Instruct; the paper gives its values as bars only."
)
_TITLE = "Finding 4: whether masks agree across pairs of models"


def consistency_section(evidence: Evidence) -> list[Section | Absent]:
    """Overlap of the masks of one ability in every two pairs of models."""
    table = consistency({view.pair.label: view.masks for view in evidence.views})
    if table.empty:
        return [Absent(_TITLE, "it needs one ability's scores on two pairs of models: name two or more runs.")]
    section = Section("finding-4", _TITLE, _CLAIM)
    p = percent(evidence.ratio)
    section.summary.append(
        f"Masks of one ability on different pairs of models share {percents(table['overlap'])} of their channels "
        f"(chance {percents(table['chance'])})."
    )
    caption = f"Figures 3 and 21. Overlap of one ability's masks at p = {p} across pairs of models."
    section.content += [
        Picture(
            "consistency",
            caption,
            partial(dots_figure, _by_pairs(table), "overlap", {"chance": table["chance"].mean()}, True),
        ),
        Table("consistency", "The same in numbers.", table.set_index("ability"), frozenset({"overlap", "chance"})),
    ]
    return [section]


def _by_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """A row per ability, a column per two pairs of models."""
    named = table.assign(pairs=table["first"] + " | " + table["second"])
    matrix = named.pivot(index="ability", columns="pairs", values="overlap")
    return matrix.loc[table["ability"].unique(), named["pairs"].unique()]
