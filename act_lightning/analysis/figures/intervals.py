"""Figures of values with their intervals, one panel beside the other."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from act_lightning.analysis.figures.palette import GRID, MUTED, SERIES, SURFACE
from act_lightning.analysis.figures.style import panels, styled

_MARKERS = ("o", "D", "s", "^")
_ROW = 0.62  # of an inch, for all series of a row


@styled
def intervals_figure(values: pd.DataFrame, panel_names: Sequence[str], quantity: str) -> Figure:
    """A row per ability, in it one dot with its interval per series; panels share the rows.

    Args:
        values: Columns ``panel``, ``row``, ``series``, ``value``, ``low`` and ``high``.
        panel_names: The panels, from left to right.
        quantity: What is on the horizontal axes; zero is marked.
    """
    rows, series = list(dict.fromkeys(values["row"])), list(dict.fromkeys(values["series"]))
    figure, axes = panels([3.7] * len(panel_names), _ROW * len(rows) + 1.15)
    for place, (one, name) in enumerate(zip(axes, panel_names, strict=True)):
        one.axvline(0, color=MUTED, lw=0.8, gid="zero")
        one.hlines([at + 0.5 for at in range(len(rows) - 1)], 0, 1, transform=one.get_yaxis_transform(), color=GRID)
        for at, label in enumerate(series):
            part = values[(values["panel"] == name) & (values["series"] == label)]
            heights = [rows.index(row) + 0.7 * ((at + 0.5) / len(series) - 0.5) for row in part["row"]]
            color = SERIES[at % len(SERIES)]
            below, above = part["value"] - part["low"], part["high"] - part["value"]
            one.errorbar(
                part["value"], heights, xerr=[below, above], gid=f"{name}: {label}", label=None if place else label,
                fmt=_MARKERS[at % len(_MARKERS)], ms=4.5, lw=1.1, color=color, mfc=color if at == 0 else SURFACE,
            )  # fmt: skip
        one.set(title=name, xlabel=quantity, ylim=(len(rows) - 0.5, -0.5))
        one.set_yticks(range(len(rows)), rows if place == 0 else [""] * len(rows))
        one.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=len(series), frameon=False, fontsize=7.5)
    return figure
