"""What a report is made of: sections of text, figures and tables; and what it cannot show."""

from __future__ import annotations

from collections.abc import Callable
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
class Table:
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
    content: list[Picture | Table | str] = field(default_factory=list)


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
