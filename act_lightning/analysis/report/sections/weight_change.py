"""Finding 5: channels that act differently are not those whose weights changed most."""

from __future__ import annotations

from functools import partial

import pandas as pd
from torch import Tensor

from act_lightning.analysis.distribution import ccdf, ccdfs_by
from act_lightning.analysis.figures.findings import CHANGE, dots_figure, places_figure, total_figure
from act_lightning.analysis.paper import QWEN_7B_MATH, RATIO
from act_lightning.analysis.report.evidence import Evidence, PairView
from act_lightning.analysis.report.page import Absent, Picture, ReportTable, Section, numbers, percent, percents
from act_lightning.analysis.saved import NotOnDisk, find_models
from act_lightning.analysis.weights import agreement, weight_change
from act_lightning.channels import inventory
from act_lightning.checkpoints.models import meta_model
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError

_CLAIM = (
    "Finding 5: “Ability-specific channels selected by activations differ from largely updated ones during "
    "fine-tuning.” In Table 2 the two top 1 % overlap by 3.83–5.62 %, where random masks overlap by 1 %."
)
_TITLE = "Finding 5: activation differences against weight changes"
Items = list[Picture | ReportTable | str]


def weight_change_section(evidence: Evidence) -> list[Section | Absent]:
    """The ℓ2 norm of every channel's weight change against its score, where both models are on disk."""
    section, absent = Section("finding-5", _TITLE, _CLAIM), []
    for view in evidence.views:
        try:
            section.content += [*view.heading, *_content(view, _change(view), section.summary)]
        except NotOnDisk as reason:
            absent.append(Absent(f"{_TITLE}, {view.pair.label}" if view.heading else _TITLE, f"{reason}."))
    return [*([section] if section.content else []), *absent]


def _change(view: PairView) -> Tensor:
    """The weight change in the order of the saved scores.

    Raises:
        NotOnDisk: The models cannot be read here.
    """
    if not view.evidence.weights:
        raise NotOnDisk("weights were not to be read (--no-weights)")
    target, source = find_models(view.pair, view.evidence.folders)
    try:
        channels = inventory(meta_model(target))
        with CheckpointReader(target) as ours, CheckpointReader(source) as theirs:
            change = weight_change(ours, theirs, channels, view.evidence.quiet)
    except ActError as error:
        raise NotOnDisk(f"the weights cannot be compared ({error})") from error
    return view.evidence.saved.inventory.join(channels.split(change))


def _content(view: PairView, change: Tensor, summary: list[str]) -> Items:
    table = agreement(view.scores, change, view.evidence.ratio)
    paper = view.paper or QWEN_7B_MATH
    if view.evidence.ratio == RATIO:
        table["paper"] = pd.Series(
            {label: share for label, share in paper.weight.items() if label in table.index}, dtype=float
        )
    summary.append(_sentence(view, table))
    return [
        *_overlap(view, table, paper.name + ("" if view.paper else ", another pair than ours"), paper.weight_table),
        *_curves(view, change),
    ]


def _sentence(view: PairView, table: pd.DataFrame) -> str:
    of = f"{view.pair.label}: the" if view.heading else "The"
    return (
        f"{of} channels with the largest weight change are {percents(table['overlap'])} of those with the "
        f"largest scores (top {percent(view.evidence.ratio)} of both; random {percent(table['chance'].iloc[0])}; the "
        f"paper's Table 2: 3.83–5.62 %); rank correlation over all channels {numbers(table['rank correlation'])}."
    )


def _overlap(view: PairView, table: pd.DataFrame, paper: str, number: str) -> Items:
    table = table.dropna(axis=1, how="all")
    p, shown = percent(view.evidence.ratio), [name for name in ("overlap", "paper") if name in table]
    beside = f" The paper's ({number}) are of {paper}." if "paper" in shown else ""
    caption = (
        f"Tables 2 and 6–10. Overlap of the top {p} by weight change with the top {p} by activation difference.{beside}"
    )
    references = {"random": float(table["chance"].iloc[0])}
    return [
        Picture(
            view.named("weight-overlap"),
            caption,
            partial(dots_figure, table[shown], "overlap", references, percent=True),
        ),
        ReportTable(
            view.named("weight-overlap"),
            f"{caption} Rank correlation: Spearman's, over all channels.",
            table,
            frozenset({"overlap", "chance", "paper"}),
        ),
    ]


def _curves(view: PairView, change: Tensor) -> Items:
    inventory = view.evidence.saved.inventory
    by_layer, by_type = (ccdfs_by(change, inventory, by) for by in ("layer", "type"))
    return [
        Picture(
            view.named("weight-ccdf"),
            "Figure 22, left. CCDF of channel-wise ℓ2 weight differences.",
            partial(total_figure, ccdf(change)),
        ),
        Picture(
            view.named("weight-places"),
            "Figure 22, middle and right. The same within each layer and within each type of module.",
            partial(places_figure, by_layer, by_type, CHANGE),
        ),
    ]
