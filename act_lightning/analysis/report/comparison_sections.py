"""Sections that compare: abilities (Finding 3), pairs of models (Finding 4), scores and weight changes (Finding 5)."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
from torch import Tensor

from act_lightning.analysis.distribution import ccdf, ccdfs_by, vocabulary_modules
from act_lightning.analysis.figures.findings import (
    CHANGE,
    dots_figure,
    overlap_figure,
    places_figure,
    ratios_figure,
    total_figure,
)
from act_lightning.analysis.overlaps import (
    chance_overlap,
    chance_overlap_by_module,
    consistency,
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
from act_lightning.analysis.report.page import (
    Absent,
    Item,
    Picture,
    ReportTable,
    Section,
    numbers,
    percent,
    percents,
    verdict,
)
from act_lightning.analysis.weights import NotOnDisk, agreement, find_models, rank_correlations, weight_change
from act_lightning.channels import inventory
from act_lightning.checkpoints.compatibility import match_vocabularies
from act_lightning.checkpoints.models import meta_model
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError
from act_lightning.masks import ratio_count
from act_lightning.scorers import Activation

_CURVE = (0.001, 0.003, 0.01, 0.03, 0.1)  # the values of p at which overlaps are drawn
_OVERLAP_TITLE = "Finding 3: what masks of different abilities share"
_OVERLAP_CLAIM = (
    "Finding 3: “Ability-specific channels are naturally disentangled.” At the top 1 % of Qwen2.5-7B (Math-Instruct "
    "vs. Instruct), EN-Math shares 25.3 % with AR-Math, 21 % with AR-Science and 67.6 % with EN-Science (Table 1)."
)
_REST, _SPEARMAN = "overlap without lm_head and embedding", "rank correlation"
_CONSISTENCY_TITLE = "Finding 4: whether masks agree across pairs of models"
_CONSISTENCY_CLAIM = (
    "Finding 4: “Ability-specific channels exhibit consistency after fine-tuning.” Figure 3 compares "
    "Math-Instruct vs. Instruct with Coder-Instruct vs. Instruct; the paper gives its values as bars only."
)
_WEIGHTS_TITLE = "Finding 5: activation differences against weight changes"
_WEIGHTS_CLAIM = (
    "Finding 5: “Ability-specific channels selected by activations differ from largely updated ones during "
    "fine-tuning.” In Table 2 the two top 1 % overlap by 3.83–5.62 %, where random masks overlap by 1 %."
)


def overlap_section(evidence: Evidence) -> list[Section | Absent]:
    """Overlap of every two abilities at every p, against chance, and with the union of another language's domains."""
    views = [view for view in evidence.views if len(view.scores) > 1]
    if not views:
        return [Absent(_OVERLAP_TITLE, "it needs the scores of two abilities of one pair of models.")]
    section = Section("finding-3", _OVERLAP_TITLE, _OVERLAP_CLAIM)
    total = evidence.saved.inventory.total
    for view in views:
        groups = pair_groups(view.abilities)
        correlations = rank_correlations(view.scores)
        section.content += [*view.heading, _chance_table(view, correlations, section.summary)]
        name, caption = view.file_name("rank-correlation"), "Spearman's rank correlation of scores over all channels."
        section.content.append(ReportTable(name, caption, correlations, shown=len(correlations) <= 8))
        for ratio in evidence.ratios:
            section.content += _overlap_items(view, ratio)
        curves = overlap_over_ratios(view.scores, [ratio for ratio in _CURVE if ratio_count(total, ratio)], groups)
        name, caption = view.file_name("overlap-over-p"), "Mean overlap of two abilities at every p, beside chance."
        rows, shares = curves.set_index("ratio"), frozenset({"overlap"})
        section.content += [
            Picture(name, caption, partial(ratios_figure, curves)),
            ReportTable(name, "The same in numbers.", rows, shares, shown=False),
        ]
    return [section]


def _chance_table(view: PairView, correlations: pd.DataFrame, summary: list[str]) -> ReportTable:
    """Mean overlaps against chance, and rank correlations, with a sentence for the summary."""
    channels, masks, ratio = view.evidence.saved.inventory, view.masks, view.evidence.ratio
    matrices = {
        "overlap": overlap_matrix(masks),
        "chance": chance_overlap(masks),
        "chance within modules": chance_overlap_by_module(masks, channels),
    }
    head, embedding = vocabulary_modules(channels)
    rest = ~(head | embedding)
    if rest.any() and not rest.all() and ratio_count(int(rest.sum()), ratio):
        matrices[_REST] = overlap_matrix(top_masks(view.scores, ratio, rest))
    table = overlap_by_group({**matrices, _SPEARMAN: correlations}, pair_groups(view.abilities))
    means = "; ".join(f"{group} {percent(share)}" for group, share in table["overlap"].items())
    sentence = (
        f"{view.sentence_start('at')} p = {percent(ratio)} the masks of two abilities share on average: {means}. By "
        f"chance they would share {percents(table['chance'])}; drawn at random within each module, "
        f"{percents(table['chance within modules'])}. Over all channels their rankings correlate by "
        f"{numbers(table[_SPEARMAN])} (Spearman's ρ)."
    )
    if _REST in table:
        shares = ", ".join(percent(share) for share in table[_REST])
        sentence += f" With lm_head and embedding left out of the ranking they share {shares}."
    summary.append(sentence)
    if view.pair.scorer == Activation.name:
        overlaps = matrices["overlap"].to_numpy()[~np.eye(len(masks), dtype=bool)]
        criterion = "less than half of a mask is shared with another ability's"
        summary.append(verdict(criterion, overlaps < 0.5, "ordered pair"))
    caption = (
        f"Mean overlap of two masks at p = {percent(ratio)}, over ordered pairs of abilities, against chance: "
        "column masks drawn at random from all channels, or at random within each module; and the overlap when lm_head "
        "and embedding are left out of the ranking; rank correlation: Spearman's, over all channels."
    )
    return ReportTable(view.file_name("overlap-by-group"), caption, table, frozenset(matrices))


def _overlap_items(view: PairView, ratio: float) -> list[Item]:
    """Figure and tables of all overlaps at one p."""
    masks = view.masks if ratio == view.evidence.ratio else top_masks(view.scores, ratio)
    matrix, cross = overlap_matrix(masks), cross_language_overlap(masks, view.abilities)
    end, p = ("" if ratio == view.evidence.ratio else f"-{ratio:g}"), percent(ratio)
    name, small = view.file_name(f"overlap{end}"), len(matrix) <= 8
    caption = f"Table 1, Table 5, Figure 20. Overlap of the masks at p = {p} in % of the base ability's (row's) mask."
    languages = [ability.language for ability in view.abilities.values()]
    items: list[Item] = [Picture(name, caption, partial(overlap_figure, matrix, languages))]
    caption = f"Tables 1 and 5 at p = {p}: overlap, normalized by the row's mask."
    items.append(ReportTable(name, caption, matrix, frozenset(matrix.columns), shown=small))
    caption = f"Tables 1 and 5 at p = {p}: number of shared channels."
    items.append(ReportTable(view.file_name(f"shared{end}"), caption, shared_channels(masks), shown=small))
    if len(cross):
        caption = (
            f"Table 1, last column (Cross-Lingual), at p = {p}: overlap with the union of all domains of another "
            "language; “others”: of all other languages. Chance is the union's share of all channels."
        )
        rows, shares = cross.set_index("ability"), frozenset({"overlap", "chance"})
        small = len(cross) <= 12
        items.append(ReportTable(view.file_name(f"cross-lingual{end}"), caption, rows, shares, shown=small))
    if ratio == RATIO and view.pair.scorer == Activation.name:
        items += _paper_table(view, matrix, cross)
    return items


def _paper_table(view: PairView, matrix: pd.DataFrame, cross: pd.DataFrame) -> list[Item]:
    """Our overlaps beside the paper's, for abilities that both have."""
    known = view.paper if view.paper and view.paper.overlaps else None
    paper = known or QWEN_7B_MATH
    rows = [
        (row, column, matrix.loc[row, column], share)
        for (row, column), share in paper.overlaps.items()
        if row in matrix.index and column in matrix.columns
    ]
    # The paper's union is of both domains of the other of two languages, English and Arabic.
    other_language = {"EN": "ar", "AR": "en"}
    rows += [
        (row["ability"], f"union of {row['language'].upper()}", row["overlap"], paper.cross_lingual[row["ability"]])
        for _, row in cross.iterrows()
        if row["ability"] in paper.cross_lingual and row["language"] == other_language.get(row["ability"][:2])
    ]
    if not rows:
        return []
    frame = pd.DataFrame(rows, columns=["base ability", "compared", "overlap", "paper"]).set_index("base ability")
    note = "" if known else " (another pair than ours)"
    caption = f"Overlap beside the paper's {paper.overlap_table}, which is of {paper.name}{note}."
    return [ReportTable(view.file_name("overlap-paper"), caption, frame, frozenset({"overlap", "paper"}))]


def consistency_section(evidence: Evidence) -> list[Section | Absent]:
    """Overlap of the masks of one ability in every two pairs of models."""
    scorers = dict.fromkeys(view.pair.scorer for view in evidence.views)
    table = pd.concat(
        consistency({view.pair.label: view.masks for view in evidence.views if view.pair.scorer == scorer})
        for scorer in scorers
    )
    if table.empty:
        reason = "it needs one ability's scores on two pairs of models: name two or more runs."
        return [Absent(_CONSISTENCY_TITLE, reason)]
    section = Section("finding-4", _CONSISTENCY_TITLE, _CONSISTENCY_CLAIM)
    section.summary.append(
        f"Masks of one ability on different pairs of models share {percents(table['overlap'])} of their channels "
        f"(chance {percents(table['chance'])})."
    )
    section.summary.append(verdict("at least half of the mask is shared", table["overlap"] >= 0.5, "comparison"))
    pairs = table.assign(pairs=table["first"] + " | " + table["second"])
    matrix = pairs.pivot(index="ability", columns="pairs", values="overlap")
    matrix = matrix.loc[table["ability"].unique(), pairs["pairs"].unique()]
    caption = (
        f"Figures 3 and 21. Overlap of one ability's masks at p = {percent(evidence.ratio)} across pairs of models."
    )
    references = {"chance": table["chance"].mean()}
    rows, shares = table.set_index("ability"), frozenset({"overlap", "chance"})
    section.content += [
        Picture("consistency", caption, partial(dots_figure, matrix, "overlap", references, percent=True)),
        ReportTable("consistency", "The same in numbers.", rows, shares),
    ]
    return [section]


def selections_section(evidence: Evidence) -> list[Section | Absent]:
    """What the masks of two scorers share, of one ability on one pair of models."""
    title, rows = "What other selections choose", []
    for first, second in combinations(evidence.views, 2):
        if (first.pair.run, first.pair.source) == (second.pair.run, second.pair.source):
            for ability in (ability for ability in first.masks if ability in second.masks):
                masks = {"first": first.masks[ability], "second": second.masks[ability]}
                scores = {"first": first.scores[ability], "second": second.scores[ability]}
                rows.append(
                    {
                        "ability": ability,
                        "first": first.pair.scorer,
                        "second": second.pair.scorer,
                        "overlap": overlap_matrix(masks).loc["first", "second"],
                        "chance": chance_overlap(masks).loc["first", "second"],
                        _SPEARMAN: rank_correlations(scores).loc["first", "second"],
                    }
                )
    if not rows:
        return [Absent(title, "it needs scores of one run by two selections, such as scores/ and scores.attribution/.")]
    table, p = pd.DataFrame(rows).set_index("ability"), percent(evidence.ratio)
    section = Section("selections", title)
    section.summary.append(
        f"Masks by two selections share {percents(table['overlap'])} of their channels at p = {p} (chance "
        f"{percents(table['chance'])}); their rankings correlate by {numbers(table[_SPEARMAN])} (Spearman's ρ)."
    )
    caption = f"Overlap of the masks of two selections at p = {p}, and Spearman's rank correlation over all channels."
    section.content.append(ReportTable("selections", caption, table, frozenset({"overlap", "chance"})))
    return [section]


def weight_change_section(evidence: Evidence) -> list[Section | Absent]:
    """The ℓ2 norm of every channel's weight change against its score, if both models are on disk."""
    section, absent = Section("finding-5", _WEIGHTS_TITLE, _WEIGHTS_CLAIM), []
    changes: dict[tuple[str, ...], Tensor | None] = {}  # other scores of a pair are of the same weights
    for view in evidence.views:
        pair = (str(view.pair.run), *view.pair.models)
        try:
            if pair not in changes:
                changes[pair] = None
                changes[pair] = _weight_change(view)
        except NotOnDisk as reason:
            title = f"{_WEIGHTS_TITLE}, {view.pair.label}" if view.heading else _WEIGHTS_TITLE
            absent.append(Absent(title, f"{reason}."))
        if (change := changes[pair]) is not None:
            section.content += [*view.heading, *_weight_items(view, change, section.summary)]
    return [*([section] if section.content else []), *absent]


def _weight_change(view: PairView) -> Tensor:
    """The weight change in the order of the saved scores, float32 ``[channels]``.

    Raises:
        NotOnDisk: The models cannot be read here.
    """
    if not view.evidence.weights:
        raise NotOnDisk("weights were not to be read (--no-weights)")
    target, source = find_models(view.pair, view.evidence.folders)
    try:
        channels, match = inventory(meta_model(target)), match_vocabularies(target, source)
        with CheckpointReader(target) as target_reader, CheckpointReader(source) as source_reader:
            change = weight_change(target_reader, source_reader, channels, match, view.evidence.quiet)
    except ActError as error:
        raise NotOnDisk(f"the weights cannot be compared ({error})") from error
    return view.evidence.saved.inventory.join(channels.split(change))


def _weight_items(view: PairView, change: Tensor, summary: list[str]) -> list[Item]:
    table = agreement(view.scores, change, view.evidence.ratio)
    paper, p = view.paper or QWEN_7B_MATH, percent(view.evidence.ratio)
    theirs = "; the paper's Table 2: 3.83–5.62 %" if view.pair.scorer == Activation.name else ""
    if theirs and view.evidence.ratio == RATIO:
        shares = {label: share for label, share in paper.weight.items() if label in table.index}
        table["paper"] = pd.Series(shares, dtype=float)
    summary.append(
        f"{view.sentence_start('the')} channels with the largest weight change are {percents(table['overlap'])} of "
        f"those with the largest scores (top {p} of both; random {percent(table['chance'].iloc[0])}{theirs}); rank "
        f"correlation over all channels {numbers(table['rank correlation'])}."
    )
    if view.pair.scorer == Activation.name:
        summary.append(verdict("less than half is shared", table["overlap"] < 0.5, "ability", "abilities"))
    table = table.dropna(axis=1, how="all")
    columns = [name for name in ("overlap", "paper") if name in table]
    caption = f"Tables 2 and 6–10. Overlap of the top {p} by weight change with the top {p} by {view.quantity}."
    if "paper" in columns:
        note = "" if view.paper else ", another pair than ours"
        caption += f" The paper's ({paper.weight_table}) are of {paper.name}{note}."
    name, references = view.file_name("weight-overlap"), {"random": float(table["chance"].iloc[0])}
    draw = partial(dots_figure, table[columns], "overlap", references, percent=True)
    note = f"{caption} Rank correlation: Spearman's, over all channels."
    rows = ReportTable(name, note, table, frozenset({"overlap", "chance", "paper"}))
    total_caption = "Figure 22, left. CCDF of channel-wise ℓ2 weight differences."
    total = Picture(view.file_name("weight-ccdf"), total_caption, partial(total_figure, ccdf(change)))
    by_layer, by_type = (ccdfs_by(change, view.evidence.saved.inventory, by) for by in ("layer", "type"))
    places_caption = "Figure 22, middle and right. The same within each layer and within each type of module."
    draw_places = partial(places_figure, by_layer, by_type, CHANGE)
    places = Picture(view.file_name("weight-places"), places_caption, draw_places)
    return [Picture(name, caption, draw), rows, total, places]
