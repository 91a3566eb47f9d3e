"""Finding 3: masks of different abilities share few channels; but more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pandas as pd

from act_lightning.analysis.distribution import vocabulary_modules
from act_lightning.analysis.figures.findings import overlap_figure, ratios_figure
from act_lightning.analysis.overlaps import (
    chance_overlap,
    chance_overlap_by_module,
    cross_language_overlap,
    overlap_by_group,
    overlap_matrix,
    overlap_over_ratios,
    pair_groups,
    shared_channels,
    top_masks,
)
from act_lightning.analysis.paper import QWEN_7B_MATH, RATIO
from act_lightning.analysis.report.evidence import Evidence, PairView
from act_lightning.analysis.report.page import Absent, Picture, ReportTable, Section, percent, percents
from act_lightning.masks import ratio_count

CURVE = (0.001, 0.003, 0.01, 0.03, 0.1)
"""The values of p at which overlaps are drawn."""
_CLAIM = (
    "Finding 3: “Ability-specific channels are naturally disentangled.” At the top 1 % of Qwen2.5-7B (Math-Instruct "
    "vs. Instruct), EN-Math shares 25.3 % with AR-Math, 21 % with AR-Science and 67.6 % with EN-Science (Table 1)."
)
_REST = "overlap without lm_head and embedding"
_TITLE = "Finding 3: what masks of different abilities share"
Items = list[Picture | ReportTable | str]


def overlap_section(evidence: Evidence) -> list[Section | Absent]:
    """Overlap of every two abilities at every p, against chance, and with the union of another language's domains."""
    views = [view for view in evidence.views if len(view.scores) > 1]
    if not views:
        return [Absent(_TITLE, "it needs the scores of two abilities of one pair of models.")]
    section = Section("finding-3", _TITLE, _CLAIM)
    for view in views:
        section.content += view.heading
        section.content += _against_chance(view, section.summary)
        for ratio in evidence.ratios:
            section.content += _at(view, ratio)
        section.content += _curve(view)
    return [section]


def _against_chance(view: PairView, summary: list[str]) -> Items:
    inventory, masks, ratio = view.evidence.saved.inventory, view.masks, view.evidence.ratio
    head, embedding = vocabulary_modules(inventory)
    matrices = {
        "overlap": overlap_matrix(masks),
        "chance": chance_overlap(masks),
        "chance within modules": chance_overlap_by_module(masks, inventory),
    }
    rest = ~(head | embedding)
    if rest.any() and not rest.all() and ratio_count(int(rest.sum()), ratio):
        matrices[_REST] = overlap_matrix(top_masks(view.scores, ratio, rest))
    table = overlap_by_group(matrices, pair_groups(view.abilities))
    summary.append(_sentence(view, table))
    caption = (
        f"Mean overlap of two masks at p = {percent(ratio)}, over ordered pairs of abilities, against chance: "
        "column masks drawn at random from all channels, or at random within each module; and the overlap when lm_head "
        "and embedding are left out of the ranking."
    )
    return [ReportTable(view.named("overlap-by-group"), caption, table, frozenset(matrices))]


def _sentence(view: PairView, table: pd.DataFrame) -> str:
    of = f"{view.pair.label}: at" if view.heading else "At"
    means = "; ".join(f"{group} {percent(share)}" for group, share in table["overlap"].items())
    rest = ", ".join(percent(share) for share in table[_REST]) if _REST in table else ""
    return (
        f"{of} p = {percent(view.evidence.ratio)} the masks of two abilities share on average: {means}. By chance they "
        f"would share {percents(table['chance'])}; drawn at random within each module, "
        f"{percents(table['chance within modules'])}."
        + (f" With lm_head and embedding left out of the ranking they share {rest}." if rest else "")
    )


def _at(view: PairView, ratio: float) -> Items:
    masks = view.masks if ratio == view.evidence.ratio else top_masks(view.scores, ratio)
    matrix, shared = overlap_matrix(masks), shared_channels(masks)
    cross = cross_language_overlap(masks, view.abilities)
    end, p = ("" if ratio == view.evidence.ratio else f"-{ratio:g}"), percent(ratio)
    few = len(matrix) <= 8
    items: Items = [
        Picture(
            view.named(f"overlap{end}"),
            f"Table 1, Table 5, Figure 20. Overlap of the masks at p = {p} in % of the base ability's (row's) mask.",
            partial(overlap_figure, matrix, [ability.language for ability in view.abilities.values()]),
        ),
        ReportTable(
            view.named(f"overlap{end}"),
            f"Tables 1 and 5 at p = {p}: overlap, normalized by the row's mask.",
            matrix,
            frozenset(matrix.columns),
            few,
        ),
        ReportTable(
            view.named(f"shared{end}"), f"Tables 1 and 5 at p = {p}: number of shared channels.", shared, shown=few
        ),
    ]
    if len(cross):
        items.append(_cross_lingual(view, cross, end, p))
    if ratio == RATIO:
        items += _beside_the_paper(view, matrix, cross)
    return items


def _cross_lingual(view: PairView, cross: pd.DataFrame, end: str, p: str) -> ReportTable:
    caption = (
        f"Table 1, last column (Cross-Lingual), at p = {p}: overlap with the union of all domains of another language; "
        "“others”: of all other languages. Chance is the union's share of all channels."
    )
    shares, few = frozenset({"overlap", "chance"}), len(cross) <= 12
    return ReportTable(view.named(f"cross-lingual{end}"), caption, cross.set_index("ability"), shares, few)


def _beside_the_paper(view: PairView, matrix: pd.DataFrame, cross: pd.DataFrame) -> Items:
    """Our overlaps beside the paper's, where both have the abilities."""
    known = view.paper if view.paper and view.paper.overlaps else None
    paper = known or QWEN_7B_MATH
    rows = [
        (row, column, matrix.loc[row, column], share)
        for (row, column), share in paper.overlaps.items()
        if row in matrix.index and column in matrix.columns
    ]
    rows += _unions(cross, paper.cross_lingual)
    if not rows:
        return []
    frame = pd.DataFrame(rows, columns=["base ability", "compared", "overlap", "paper"]).set_index("base ability")
    other = "" if known else " (another pair than ours)"
    caption = f"Overlap beside the paper's {paper.overlap_table}, which is of {paper.name}{other}."
    return [ReportTable(view.named("overlap-paper"), caption, frame, frozenset({"overlap", "paper"}))]


def _unions(cross: pd.DataFrame, paper: Mapping[str, float]) -> list[tuple[str, str, float, float]]:
    """The paper's union is of both domains of the other of two languages, English and Arabic."""
    other = {"EN": "ar", "AR": "en"}
    return [
        (row["ability"], f"union of {row['language'].upper()}", row["overlap"], paper[row["ability"]])
        for _, row in cross.iterrows()
        if row["ability"] in paper and row["language"] == other.get(row["ability"][:2])
    ]


def _curve(view: PairView) -> Items:
    total = view.evidence.saved.inventory.total
    ratios = [ratio for ratio in CURVE if ratio_count(total, ratio)]
    curves = overlap_over_ratios(view.scores, ratios, pair_groups(view.abilities))
    return [
        Picture(
            view.named("overlap-over-p"),
            "Mean overlap of two abilities at every p, beside chance.",
            partial(ratios_figure, curves),
        ),
        ReportTable(
            view.named("overlap-over-p"),
            "The same in numbers.",
            curves.set_index("ratio"),
            frozenset({"overlap"}),
            False,
        ),
    ]
