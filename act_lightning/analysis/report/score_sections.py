"""Sections on each ability by itself: what was measured, how concentrated, where, and how stable (Findings 1 and 2)."""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch

from act_lightning.analysis.distribution import (
    ccdfs,
    ccdfs_by,
    composition,
    concentration,
    head_and_embedding,
    selected_by_expert,
    selected_by_module,
    used_by_expert,
)
from act_lightning.analysis.figures.findings import (
    ability_colors,
    ccdf_figure,
    composition_figure,
    dots_figure,
    experts_figure,
    layers_figure,
    places_figure,
    samples_figure,
)
from act_lightning.analysis.overlaps import mask_stability, overlaps_by_samples, samples_for
from act_lightning.analysis.paper import SHARE_BELOW, THRESHOLD
from act_lightning.analysis.report.evidence import Evidence, PairView
from act_lightning.analysis.report.page import (
    Absent,
    Item,
    Picture,
    ReportTable,
    Section,
    counted,
    numbers,
    percent,
    percents,
    verdict,
)
from act_lightning.scorers import Activation
from act_lightning.scores import chunks_path, read_chunks, read_usage, score_path

_CONCENTRATION_CLAIM = (
    "Finding 1: “Large activation differences are concentrated in a small fraction of channels.” For Qwen2.5-7B "
    f"(Math-Instruct vs. Instruct) about {percent(SHARE_BELOW)} of the channels stay below {THRESHOLD}; in LLaMA-2 "
    "magnitudes are smaller."
)
_LOCATION_CLAIM = (
    "Finding 2: “Activation difference distributions across different layers exhibit consistent patterns.” "
    "Deeper layers and the language modeling head tend to larger extrema; no single layer or module dominates."
)
_STABILITY_TITLE = "How sure the masks are"
_STABILITY_CLAIM = (
    "The paper measures every ability on 1,500 samples, and does not say how much its masks depend on which."
)
_ENOUGH = 0.9
_CONCENTRATED = 10  # times an equal share, for a finding to be supported


def measured_section(evidence: Evidence) -> list[Section | Absent]:
    """Pairs, abilities, samples and channels."""
    saved, section, rows = evidence.saved, Section("measured", "What was measured"), []
    tokens = {
        (pair.run, pair.source, name): record.tokens for pair in saved.pairs for name, record in pair.records.items()
    }
    scorers = dict.fromkeys(pair.scorer for pair in saved.pairs)
    labels = dict.fromkeys(pair.label for pair in saved.pairs if pair.scorer == next(iter(scorers)))
    by = f" by {len(scorers)} selections ({', '.join(scorers)})" if len(scorers) > 1 else ""
    section.summary.append(
        f"Scores of {counted(len(evidence.abilities), 'ability', 'abilities')} on "
        f"{counted(len(labels), 'pair')} of models ({'; '.join(labels)}){by}: "
        f"{counted(saved.inventory.total, 'channel')} in {counted(len(saved.inventory.modules), 'module')}, "
        f"averaged over {counted(sum(tokens.values()), 'answer token')} in all."
    )
    if not saved.ordered:
        section.content.append(
            "The score files do not say the model's order of modules: channels of equal score are ranked in the usual "
            "order (embedding, layers, final norm, head), which may differ from the model's."
        )
    for view in evidence.views:
        for label, ability in view.abilities.items():
            record = view.pair.records[ability.name]
            rows.append(
                {
                    "ability": label,
                    "name": ability.name,
                    "language": ability.language or "not named",
                    "domain": ability.domain,
                    "samples": record.samples,
                    "dropped": record.dropped,
                    "answer tokens": record.tokens,
                    "precision": record.dtype,
                    "pair": view.pair.label,
                    "run": view.pair.run.name,
                    "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
                }
            )
    caption = "Abilities and samples. Labels are the paper's: language and domain are read from the abilities' names."
    section.content.append(ReportTable("measured", caption, pd.DataFrame(rows).set_index("ability")))
    return [section]


def concentration_section(evidence: Evidence) -> list[Section | Absent]:
    """CCDF of all abilities, and how few channels hold how much."""
    section = Section("finding-1", "Finding 1: how concentrated the differences are", _CONCENTRATION_CLAIM)
    p = percent(evidence.ratio)
    for view in evidence.views:
        table, curves = concentration(view.scores, evidence.ratio), ccdfs(view.scores)
        sentence = (
            f"{view.sentence_start('the')} top {p} of channels hold {percents(table['held by top p'])} of the total "
            f"score (Gini {numbers(table['Gini'])}) and begin at a score of {numbers(table['lowest selected'])}"
        )
        if view.pair.scorer == Activation.name:
            sentence += (
                f"; {percents(1 - table[f'> {THRESHOLD:g}'])} of the channels stay at or below {THRESHOLD} (paper, "
                f"Qwen2.5-7B: about {percent(SHARE_BELOW)} below)"
            )
        else:  # the paper's thresholds are of its own score
            table = table[[name for name in table if not name.startswith(">")]]
        section.summary.append(f"{sentence}.")
        if view.pair.scorer == Activation.name:
            least = min(_CONCENTRATED * evidence.ratio, 0.5)
            criterion = f"the top {p} hold at least {percent(least)} of the total"
            section.summary.append(verdict(criterion, table["held by top p"] >= least, "ability", "abilities"))
        colors = ability_colors({label: ability.domain for label, ability in view.abilities.items()})
        shares = frozenset({"held by top p", *(name for name in table.columns if name.startswith(">"))})
        section.content += view.heading
        caption = (
            "Figures 1a, 6–12. CCDF: the fraction of channels whose averaged activation difference exceeds a "
            "threshold. Labels stand at the largest score of each ability."
        )
        if any(bool((values < 0).any()) for values in view.scores.values()):
            caption += " Scores below 0 are left out."
        draw = partial(ccdf_figure, curves, colors, evidence.ratio, view.quantity)
        section.content.append(Picture(view.file_name("ccdf"), caption, draw))
        caption = f"The lowest score among the top {p} of each ability, and its largest score."
        lowest = table[["lowest selected", "max"]]
        draw = partial(dots_figure, lowest.where(lowest > 0), view.quantity)
        section.content.append(Picture(view.file_name("thresholds"), caption, draw))
        caption = (
            f"Concentration of scores: Gini coefficient, the share of the total score that the top p = {p} of "
            f"channels hold, the lowest score among them, and the share of channels above thresholds."
        )
        section.content.append(ReportTable(view.file_name("concentration"), caption, table, shares))
    return [section]


def location_section(evidence: Evidence) -> list[Section | Absent]:
    """CCDFs by layer and type of module, and where the selected channels lie."""
    section = Section("finding-2", "Finding 2: where the differences lie", _LOCATION_CLAIM)
    inventory, p = evidence.saved.inventory, percent(evidence.ratio)
    everything = {"all": torch.ones(inventory.total, dtype=torch.bool)}
    all_channels = head_and_embedding(everything, inventory).loc["all"]
    selected = [selected_by_module(view.masks, inventory) for view in evidence.views]
    limits = [max(float(rows[column].max()) for rows in selected) for column in ("selected", "share")]
    for view, rows in zip(evidence.views, selected, strict=True):
        vocabulary = head_and_embedding(view.masks, inventory)
        section.summary.append(
            f"{view.sentence_start('of')} the channels selected at p = {p}, {percents(vocabulary['lm_head share'])} "
            f"are rows of lm_head ({numbers(vocabulary['lm_head'])} of {numbers(vocabulary['selected'])} per ability) "
            f"and {percents(vocabulary['embedding share'])} features of the embedding; of all channels these are "
            f"{percent(all_channels['lm_head share'])} and {percent(all_channels['embedding share'])}."
        )
        by_type = composition(view.masks, inventory)
        if view.pair.scorer == Activation.name:
            largest = by_type.loc[list(view.masks)].max(axis=1)
            criterion = "no type of module holds more than half of the selected channels"
            section.summary.append(verdict(criterion, largest <= 0.5, "ability", "abilities"))
        section.content += view.heading
        caption = (
            f"Where the selected channels (top {p}) of every ability lie, in % of its mask, by type of module; "
            "last row: all channels, what a random mask would hold."
        )
        draw = partial(composition_figure, by_type)
        section.content.append(Picture(view.file_name("composition"), caption, draw))
        caption = "Selected channels that are rows of lm_head or features of the embedding."
        name, shares = view.file_name("head-and-embedding"), frozenset({"lm_head share", "embedding share"})
        section.content.append(ReportTable(name, caption, vocabulary, shares))
        caption = "Selected channels and share of rows selected, of every ability and module."
        name, shares = view.file_name("selected-by-module"), frozenset({"share"})
        section.content.append(ReportTable(name, caption, rows.set_index("ability"), shares, shown=False))
        for label in (label for label in evidence.shown if label in view.scores):
            section.content += _location_figures(view, label, *limits)
    return [section]


def _location_figures(view: PairView, label: str, most: float, highest: float) -> list[Item]:
    inventory, name = view.evidence.saved.inventory, view.abilities[label].name
    by_layer, by_type = (ccdfs_by(view.scores[label], inventory, by) for by in ("layer", "type"))
    caption = (
        f"Figures 1b, 1c, 13–19. {label}: CCDFs within each layer and within each type of module; “outside” are "
        "embedding, final norm and head."
    )
    draw_places = partial(places_figure, by_layer, by_type, view.quantity)
    places = Picture(view.file_name(f"places-{name}"), caption, draw_places)
    caption = (
        f"{label}: channels selected at p = {percent(view.evidence.ratio)}, layer × type of module: how many, and "
        "which share of the rows there."
    )
    draw = partial(layers_figure, selected_by_module({label: view.masks[label]}, inventory), most, highest)
    return [places, Picture(view.file_name(f"layers-{name}"), caption, draw), *_expert_figures(view, label)]


def _expert_figures(view: PairView, label: str) -> list[Item]:
    """Of scores that say how often experts were used: which of them are selected, and used."""
    ability, p = view.abilities[label], percent(view.evidence.ratio)
    usage = read_usage(score_path(view.pair.folder, view.pair.source, ability.name))
    if not usage:
        return []
    experts = {name: counts.shape[1] for name, counts in usage.items()}
    selected = selected_by_expert(view.masks[label], view.evidence.saved.inventory, experts)
    used = used_by_expert(usage, view.pair.records[ability.name].tokens)
    caption = f"{label}: channels of each expert that are selected at p = {p}, in % of its channels."
    draw_selected = partial(experts_figure, selected, "selected channels of each expert")
    pictures = [Picture(view.file_name(f"experts-{ability.name}"), caption, draw_selected)]
    caption = f"{label}: answer tokens that the target routes to each expert, in % of all."
    draw_used = partial(experts_figure, used, "answer tokens routed to each expert")
    return [*pictures, Picture(view.file_name(f"experts-used-{ability.name}"), caption, draw_used)]


def stability_section(evidence: Evidence) -> list[Section | Absent]:
    """Overlaps of masks with those of other samples, and of fewer."""
    section = Section("sureness", _STABILITY_TITLE, _STABILITY_CLAIM)
    p = percent(evidence.ratio)
    for view in evidence.views:
        tables = []
        for label, ability in view.abilities.items():  # one at a time: chunks take sixteen times the memory of scores
            path = score_path(view.pair.folder, view.pair.source, ability.name)
            if chunks_path(path).is_file():
                chunks = {label: read_chunks(path, evidence.saved.inventory)}
                tables.append((mask_stability(chunks, evidence.ratio), overlaps_by_samples(chunks, evidence.ratio)))
        if not tables:
            continue
        stability = pd.concat([table for table, _ in tables])
        fewer = pd.concat([table for _, table in tables], ignore_index=True)
        section.summary.append(_stability_sentence(view, stability, fewer))
        caption = (
            f"Share of the whole mask (top {p}) that fewer of the same samples select; the smaller set lies "
            "within the larger, which flatters its right end: split halves share no sample."
        )
        name = view.file_name("samples")
        section.content += [*view.heading, Picture(name, caption, partial(samples_figure, fewer))]
        caption = (
            "Share of a mask that chunks drawn again with replacement select (mean, and the middle nine tenths of "
            "the draws), and that one half of the chunks shares with the other."
        )
        shares = frozenset({"bootstrap", "5 %", "95 %", "split half"})
        section.content.append(ReportTable(view.file_name("stability"), caption, stability, shares))
        rows, shares = fewer.set_index("ability"), frozenset({"overlap"})
        section.content.append(ReportTable(name, "The same in numbers.", rows, shares, shown=False))
    reason = "scores are means over all samples; with `profile.chunks: 16` they are kept in parts."
    return [section if section.content else Absent(_STABILITY_TITLE, reason)]


def _stability_sentence(view: PairView, stability: pd.DataFrame, fewer: pd.DataFrame) -> str:
    needed = samples_for(fewer, _ENOUGH)
    enough = [number for number in needed.values() if number is not None]
    if enough:
        conclusion = f"{numbers(enough)} samples give {percent(_ENOUGH)} of the whole mask"
        conclusion += f" for {len(enough)} of {len(needed)} abilities" if len(enough) < len(needed) else ""
    else:
        conclusion = f"fewer samples than were read do not give {percent(_ENOUGH)} of any mask"
    return (
        f"{view.sentence_start('drawn')} again from these samples, masks at p = {percent(view.evidence.ratio)} keep "
        f"{percents(stability['bootstrap'])} of their channels, and two halves share "
        f"{percents(stability['split half'])}; {conclusion}."
    )
