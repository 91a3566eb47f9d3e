"""Finding 2: large differences are spread over layers and types of modules; or not."""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch

from act_lightning.analysis.figures import composition_figure, layers_figure, places_figure
from act_lightning.analysis.location import ccdfs_by, composition, head_and_embedding, selected_by_module
from act_lightning.analysis.report.content import Absent, Picture, Section, Table
from act_lightning.analysis.report.evidence import Evidence, PairView
from act_lightning.analysis.report.wording import numbers, percent, percents

_CLAIM = (
    "Finding 2: “Activation difference distributions across different layers exhibit consistent patterns.” "
    "Deeper layers and the language modeling head tend to larger extrema; no single layer or module dominates."
)


def location_section(evidence: Evidence) -> list[Section | Absent]:
    """CCDFs by layer and type of module, and where the selected channels lie."""
    section = Section("finding-2", "Finding 2: where the differences lie", _CLAIM)
    for view in evidence.views:
        section.content += [*view.heading, *_masks(view, section.summary)]
        for label in view.shown:
            section.content += _ability(view, label)
    return [section]


def _masks(view: PairView, summary: list[str]) -> list[Picture | Table | str]:
    inventory, p = view.evidence.saved.inventory, percent(view.evidence.ratio)
    shares, vocabulary = composition(view.masks, inventory), head_and_embedding(view.masks, inventory)
    summary.append(_sentence(view, vocabulary))
    return [
        Picture(
            view.named("composition"),
            f"Where the selected channels (top {p}) of every ability lie, in % of its mask, by type of module; last "
            "row: all channels, what a random mask would hold.",
            partial(composition_figure, shares),
        ),
        Table(
            view.named("head-and-embedding"),
            "Selected channels that are rows of lm_head or features of the embedding.",
            vocabulary,
            frozenset({"lm_head share", "embedding share"}),
        ),
        Table(
            view.named("selected-by-module"),
            "Selected channels and share of rows selected, of every ability and module.",
            selected_by_module(view.masks, inventory).set_index("ability"),
            frozenset({"share"}),
            shown=False,
        ),
    ]


def _sentence(view: PairView, vocabulary: pd.DataFrame) -> str:
    everything = torch.ones(view.evidence.saved.inventory.total, dtype=torch.bool)
    all_channels = head_and_embedding({"all": everything}, view.evidence.saved.inventory).loc["all"]
    of = f"{view.pair.label}: of" if view.heading else "Of"
    return (
        f"{of} the channels selected at p = {percent(view.evidence.ratio)}, {percents(vocabulary['lm_head share'])} "
        f"are rows of lm_head ({numbers(vocabulary['lm_head'])} of {numbers(vocabulary['selected'])} per ability) and "
        f"{percents(vocabulary['embedding share'])} features of the embedding; of all channels these are "
        f"{percent(all_channels['lm_head share'])} and {percent(all_channels['embedding share'])}."
    )


def _ability(view: PairView, label: str) -> list[Picture | Table | str]:
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
