"""Sections on the masks: where selected channels lie, and whether pairs of models agree on them."""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch

from act_lightning.analysis.distribution import ccdfs_by, composition, head_and_embedding, selected_by_module
from act_lightning.analysis.figures.findings import composition_figure, dots_figure, layers_figure, places_figure
from act_lightning.analysis.overlaps import consistency
from act_lightning.analysis.report.evidence import Evidence, PairView
from act_lightning.analysis.report.page import Absent, Picture, ReportTable, Section, numbers, percent, percents

_LOCATION_CLAIM = (
    "Finding 2: “Activation difference distributions across different layers exhibit consistent patterns.” "
    "Deeper layers and the language modeling head tend to larger extrema; no single layer or module dominates."
)


def location_section(evidence: Evidence) -> list[Section | Absent]:
    """CCDFs by layer and type of module, and where the selected channels lie."""
    section = Section("finding-2", "Finding 2: where the differences lie", _LOCATION_CLAIM)
    for view in evidence.views:
        section.content += [*view.heading, *_masks(view, section.summary)]
        for label in view.shown:
            section.content += _ability(view, label)
    return [section]


def _masks(view: PairView, summary: list[str]) -> list[Picture | ReportTable | str]:
    inventory, p = view.evidence.saved.inventory, percent(view.evidence.ratio)
    shares, vocabulary = composition(view.masks, inventory), head_and_embedding(view.masks, inventory)
    summary.append(_location_sentence(view, vocabulary))
    return [
        Picture(
            view.named("composition"),
            f"Where the selected channels (top {p}) of every ability lie, in % of its mask, by type of module; last "
            "row: all channels, what a random mask would hold.",
            partial(composition_figure, shares),
        ),
        ReportTable(
            view.named("head-and-embedding"),
            "Selected channels that are rows of lm_head or features of the embedding.",
            vocabulary,
            frozenset({"lm_head share", "embedding share"}),
        ),
        ReportTable(
            view.named("selected-by-module"),
            "Selected channels and share of rows selected, of every ability and module.",
            selected_by_module(view.masks, inventory).set_index("ability"),
            frozenset({"share"}),
            shown=False,
        ),
    ]


def _location_sentence(view: PairView, vocabulary: pd.DataFrame) -> str:
    everything = torch.ones(view.evidence.saved.inventory.total, dtype=torch.bool)
    all_channels = head_and_embedding({"all": everything}, view.evidence.saved.inventory).loc["all"]
    of = f"{view.pair.label}: of" if view.heading else "Of"
    return (
        f"{of} the channels selected at p = {percent(view.evidence.ratio)}, {percents(vocabulary['lm_head share'])} "
        f"are rows of lm_head ({numbers(vocabulary['lm_head'])} of {numbers(vocabulary['selected'])} per ability) and "
        f"{percents(vocabulary['embedding share'])} features of the embedding; of all channels these are "
        f"{percent(all_channels['lm_head share'])} and {percent(all_channels['embedding share'])}."
    )


def _ability(view: PairView, label: str) -> list[Picture | ReportTable | str]:
    inventory, name = view.evidence.saved.inventory, view.abilities[label].name
    by_layer, by_type = (ccdfs_by(view.scores[label], inventory, by) for by in ("layer", "type"))
    selected = selected_by_module({label: view.masks[label]}, inventory)
    return [
        Picture(
            view.named(f"places-{name}"),
            f"Figures 1b, 1c, 13–19. {label}: CCDFs within each layer and within each type of module; “outside” are "
            "embedding, final norm and head.",
            partial(places_figure, by_layer, by_type),
        ),
        Picture(
            view.named(f"layers-{name}"),
            f"{label}: channels selected at p = {percent(view.evidence.ratio)}, layer × type of module: how many, and "
            "which share of the rows there.",
            partial(layers_figure, selected),
        ),
    ]


_CONSISTENCY_CLAIM = (
    "Finding 4: “Ability-specific channels exhibit consistency after fine-tuning.” Figure 3 compares "
    "Math-Instruct vs. Instruct with Coder-Instruct vs. Instruct; the paper gives its values as bars only."
)
_TITLE = "Finding 4: whether masks agree across pairs of models"


def consistency_section(evidence: Evidence) -> list[Section | Absent]:
    """Overlap of the masks of one ability in every two pairs of models."""
    table = consistency({view.pair.label: view.masks for view in evidence.views})
    if table.empty:
        return [Absent(_TITLE, "it needs one ability's scores on two pairs of models: name two or more runs.")]
    section = Section("finding-4", _TITLE, _CONSISTENCY_CLAIM)
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
        ReportTable(
            "consistency", "The same in numbers.", table.set_index("ability"), frozenset({"overlap", "chance"})
        ),
    ]
    return [section]


def _by_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """A row per ability, a column per two pairs of models."""
    named = table.assign(pairs=table["first"] + " | " + table["second"])
    matrix = named.pivot(index="ability", columns="pairs", values="overlap")
    return matrix.loc[table["ability"].unique(), named["pairs"].unique()]
