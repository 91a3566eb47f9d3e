"""How sure the masks are, where scores of chunks of the samples were kept."""

from __future__ import annotations

from functools import partial

import pandas as pd

from act_lightning.analysis.figures import samples_figure
from act_lightning.analysis.report.content import Absent, Picture, Section, Table
from act_lightning.analysis.report.evidence import Evidence, PairView
from act_lightning.analysis.report.wording import numbers, percent, percents
from act_lightning.analysis.sureness import mask_stability, overlaps_by_samples, samples_for
from act_lightning.scores import read_chunks

_TITLE = "How sure the masks are"
_CLAIM = "The paper measures every ability on 1,500 samples, and does not say how much its masks depend on which."
_WANTED = 0.9


def sureness_section(evidence: Evidence) -> list[Section | Absent]:
    """Overlaps of masks with those of other samples, and of fewer."""
    views = [view for view in evidence.views if view.chunk_files]
    if not views:
        return [Absent(_TITLE, "scores are means over all samples; with `profile.chunks: 16` they are kept in parts.")]
    section = Section("sureness", _TITLE, _CLAIM)
    for view in views:
        section.content += [*view.heading, *_of_pair(view, section.summary)]
    return [section]


def _of_pair(view: PairView, summary: list[str]) -> list[Picture | Table | str]:
    p = view.evidence.ratio
    stability, fewer = _tables(view, p)
    summary.append(_sentence(view, stability, fewer))
    return [
        Picture(
            view.named("samples"),
            f"Share of the whole mask (top {percent(p)}) that fewer of the same samples select; the smaller set lies "
            "within the larger, which flatters its right end: split halves share no sample.",
            partial(samples_figure, fewer),
        ),
        Table(
            view.named("stability"),
            "Share of a mask that chunks drawn again with replacement select (mean, and the middle nine tenths of the "
            "draws), and that one half of the chunks shares with the other.",
            stability,
            frozenset({"bootstrap", "5 %", "95 %", "split half"}),
        ),
        Table(view.named("samples"), "The same in numbers.", fewer.set_index("ability"), frozenset({"overlap"}), False),
    ]


def _tables(view: PairView, ratio: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of one ability after the other: the scores of its chunks take sixteen times as much as its scores."""
    found = []
    for label, path in view.chunk_files.items():
        chunks = {label: read_chunks(path, view.evidence.saved.inventory)}
        found.append((mask_stability(chunks, ratio), overlaps_by_samples(chunks, ratio)))
    stability, fewer = zip(*found, strict=True)
    return pd.concat(stability), pd.concat(fewer, ignore_index=True)


def _sentence(view: PairView, stability: pd.DataFrame, fewer: pd.DataFrame) -> str:
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
