"""Sections on the scores: what they were measured on, how concentrated and how stable they are."""

from __future__ import annotations

from functools import partial

import pandas as pd

from act_lightning.analysis.distribution import ccdfs, concentration
from act_lightning.analysis.figures.findings import SCORE, ability_colors, ccdf_figure, dots_figure, samples_figure
from act_lightning.analysis.overlaps import mask_stability, overlaps_by_samples, samples_for
from act_lightning.analysis.paper import SHARE_BELOW, THRESHOLD
from act_lightning.analysis.report.evidence import Evidence, PairView
from act_lightning.analysis.report.page import (
    Absent,
    Picture,
    ReportTable,
    Section,
    counted,
    numbers,
    percent,
    percents,
)
from act_lightning.scores import read_chunks


def measured_section(evidence: Evidence) -> list[Section | Absent]:
    """Pairs, abilities, samples and channels."""
    saved = evidence.saved
    section = Section("measured", "What was measured")
    tokens = sum(record.tokens for pair in saved.pairs for record in pair.records.values())
    section.summary.append(
        f"Scores of {counted(len(evidence.abilities), 'ability', 'abilities')} on "
        f"{counted(len(saved.pairs), 'pair')} of models ({'; '.join(pair.label for pair in saved.pairs)}): "
        f"{counted(saved.inventory.total, 'channel')} in {counted(len(saved.inventory.modules), 'module')}, "
        f"averaged over {counted(tokens, 'answer token')} in all."
    )
    if not saved.ordered:
        section.content.append(
            "The score files do not say the model's order of modules: channels of equal score are ranked in the usual "
            "order (embedding, layers, final norm, head), which may differ from the model's."
        )
    frame = pd.concat([_measured_rows(view) for view in evidence.views], ignore_index=True)
    caption = "Abilities and samples. Labels are the paper's: language and domain are read from the abilities' names."
    section.content.append(ReportTable("measured", caption, frame.set_index("ability")))
    return [section]


def _measured_rows(view: PairView) -> pd.DataFrame:
    rows = []
    for label, ability in view.abilities.items():
        record = view.pair.records[ability.name]
        versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
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
                "versions": versions,
            }
        )
    return pd.DataFrame(rows)


_CONCENTRATION_CLAIM = (
    "Finding 1: “Large activation differences are concentrated in a small fraction of channels.” For Qwen2.5-7B "
    f"(Math-Instruct vs. Instruct) about {percent(SHARE_BELOW)} of the channels stay below {THRESHOLD}; in LLaMA-2 "
    "magnitudes are smaller."
)


def concentration_section(evidence: Evidence) -> list[Section | Absent]:
    """CCDF of all abilities, and how few channels hold how much."""
    section = Section("finding-1", "Finding 1: how concentrated the differences are", _CONCENTRATION_CLAIM)
    for view in evidence.views:
        section.content += [*view.heading, *_concentration_content(view, section.summary)]
    return [section]


def _concentration_content(view: PairView, summary: list[str]) -> list[Picture | ReportTable | str]:
    table, p = concentration(view.scores, view.evidence.ratio), percent(view.evidence.ratio)
    summary.append(_concentration_sentence(view, table))
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
        ReportTable(
            view.named("concentration"),
            f"Concentration of scores: Gini coefficient, the share of the total score that the top p = {p} of channels "
            f"hold, the lowest score among them, and the share of channels above thresholds.",
            table,
            shares,
        ),
    ]


def _concentration_sentence(view: PairView, table: pd.DataFrame) -> str:
    of = f"{view.pair.label}: the" if view.heading else "The"
    return (
        f"{of} top {percent(view.evidence.ratio)} of channels hold {percents(table['held by top p'])} of the total "
        f"score (Gini {numbers(table['Gini'])}) and begin at a score of {numbers(table['lowest selected'])}; "
        f"{percents(1 - table[f'> {THRESHOLD:g}'])} of the channels stay at or below {THRESHOLD} (paper, Qwen2.5-7B: "
        f"about {percent(SHARE_BELOW)} below)."
    )


_TITLE = "How sure the masks are"
_STABILITY_CLAIM = (
    "The paper measures every ability on 1,500 samples, and does not say how much its masks depend on which."
)
_WANTED = 0.9


def stability_section(evidence: Evidence) -> list[Section | Absent]:
    """Overlaps of masks with those of other samples, and of fewer."""
    views = [view for view in evidence.views if view.chunk_files]
    if not views:
        return [Absent(_TITLE, "scores are means over all samples; with `profile.chunks: 16` they are kept in parts.")]
    section = Section("sureness", _TITLE, _STABILITY_CLAIM)
    for view in views:
        section.content += [*view.heading, *_of_pair(view, section.summary)]
    return [section]


def _of_pair(view: PairView, summary: list[str]) -> list[Picture | ReportTable | str]:
    p = view.evidence.ratio
    stability, fewer = _stability_tables(view, p)
    summary.append(_stability_sentence(view, stability, fewer))
    return [
        Picture(
            view.named("samples"),
            f"Share of the whole mask (top {percent(p)}) that fewer of the same samples select; the smaller set lies "
            "within the larger, which flatters its right end: split halves share no sample.",
            partial(samples_figure, fewer),
        ),
        ReportTable(
            view.named("stability"),
            "Share of a mask that chunks drawn again with replacement select (mean, and the middle nine tenths of the "
            "draws), and that one half of the chunks shares with the other.",
            stability,
            frozenset({"bootstrap", "5 %", "95 %", "split half"}),
        ),
        ReportTable(
            view.named("samples"), "The same in numbers.", fewer.set_index("ability"), frozenset({"overlap"}), False
        ),
    ]


def _stability_tables(view: PairView, ratio: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of one ability after the other: the scores of its chunks take sixteen times as much as its scores."""
    found = []
    for label, path in view.chunk_files.items():
        chunks = {label: read_chunks(path, view.evidence.saved.inventory)}
        found.append((mask_stability(chunks, ratio), overlaps_by_samples(chunks, ratio)))
    stability, fewer = zip(*found, strict=True)
    return pd.concat(stability), pd.concat(fewer, ignore_index=True)


def _stability_sentence(view: PairView, stability: pd.DataFrame, fewer: pd.DataFrame) -> str:
    of = f"{view.pair.label}: drawn" if view.heading else "Drawn"
    needed = samples_for(fewer, _WANTED)
    enough = [number for number in needed.values() if number is not None]
    told = (
        f"{numbers(enough)} samples give {percent(_WANTED)} of the whole mask"
        + (f" for {len(enough)} of {len(needed)} abilities" if len(enough) < len(needed) else "")
        if enough
        else f"fewer samples than were read do not give {percent(_WANTED)} of any mask"
    )
    again, halves = percents(stability["bootstrap"]), percents(stability["split half"])
    return (
        f"{of} again from these samples, masks at p = {percent(view.evidence.ratio)} keep {again} of their channels, "
        f"and two halves share {halves}; {told}."
    )
