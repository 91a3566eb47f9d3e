"""What a report is made of: sections of text, figures and tables, and numbers in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from act_lightning.analysis.report.evidence import Evidence


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: Of its files, unique in the report.
        caption: What it shows; what it is in the paper comes first.
        draw: Makes the figure when it is written: matplotlib takes seconds for a dozen.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class ReportTable:
    """A table.

    Attributes:
        name: Of its file, unique in the report.
        caption: What it shows; what it is in the paper comes first.
        frame: Its cells; names of rows are the index.
        shares: Columns whose values are shares, shown in %.
        shown: Whether the page opens with it unfolded; large ones are folded.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    shares: frozenset[str] = frozenset()
    shown: bool = True


@dataclass
class Section:
    """A part of the report.

    Attributes:
        key: Of its place in the page.
        title: Its heading.
        claim: What the paper says, to compare.
        summary: Sentences for the top of the page, computed from the data.
        content: Figures, tables and headings, in order.
    """

    key: str
    title: str
    claim: str = ""
    summary: list[str] = field(default_factory=list)
    content: list[Picture | ReportTable | str] = field(default_factory=list)


@dataclass(frozen=True)
class Absent:
    """A part that could not be shown.

    Attributes:
        title: What it would be.
        reason: Why it is not there.
    """

    title: str
    reason: str


Builder = Callable[[Evidence], list[Section | Absent]]
"""What turns the evidence into a section; or into the reason why there is none."""


def percent(share: float) -> str:
    """A share in % with three digits at most.

    >>> percent(0.253), percent(0.0466), percent(1.0), percent(0.00012)
    ('25.3 %', '4.66 %', '100 %', '0.012 %')
    """
    return f"{100 * share:.3g} %"


def percents(shares: Iterable[float]) -> str:
    """From the lowest share to the highest.

    >>> percents([0.038, 0.056]), percents([0.5])
    ('3.8–5.6 %', '50 %')
    """
    values = list(shares)
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low.removesuffix(' %')}–{high}"


def numbers(values: Iterable[float]) -> str:
    """From the lowest number to the highest.

    >>> numbers([0.7123, 0.8]), numbers([4.5]), numbers([17505, 940])
    ('0.712–0.8', '4.5', '940–17,505')
    """
    found = list(values)
    low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (min(found), max(found)))
    return low if low == high else f"{low}–{high}"


def counted(count: int, word: str, several: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "pair"), counted(2, "ability", "abilities")
    ('1 pair', '2 abilities')
    """
    return f"{count:,} {word if count == 1 else several or word + 's'}"
