"""Figures of dots: one line per ability, its values as dots along it (Figures 3 and 21, Tables 2 and 6 to 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from act_lightning.analysis.figures.palette import GRID, MUTED, SERIES, SURFACE
from act_lightning.analysis.figures.style import log_axis, panels, styled

_MARKERS = ("o", "D", "s", "^", "v", "P")


@styled
def dots_figure(
    values: pd.DataFrame, quantity: str, references: Mapping[str, float] | None = None, percent: bool = False
) -> Figure:
    """A row per ability, a dot per column.

    Args:
        values: The values; NaN where there is none.
        quantity: What is on the horizontal axis.
        references: Values to be marked by a line over all rows, by name, such as chance.
        percent: Whether values are shares; otherwise they stand on a logarithmic axis.
    """
    figure, (axes,) = panels((7.4,), 0.2 * len(values) + 1.15)
    rows = range(len(values))
    axes.hlines(rows, 0, 1, transform=axes.get_yaxis_transform(), color=GRID, lw=0.8)
    for at, name in enumerate(values.columns):
        color = SERIES[at % len(SERIES)]
        fill = color if at == 0 else SURFACE
        style: dict[str, Any] = {"marker": _MARKERS[at % len(_MARKERS)], "ms": 5, "mec": color, "mfc": fill}
        axes.plot(values[name], list(rows), gid=str(name), ls="", clip_on=False, label=str(name), **style)
    for name, value in (references or {}).items():
        axes.axvline(value, color=MUTED, lw=0.8, ls=(0, (2, 2)), gid=name)
        axes.text(value, -0.55, f" {name}", va="bottom", color=MUTED, fontsize=7.5)
    axes.set_yticks(list(rows), [str(name) for name in values.index])
    axes.set(xlabel=quantity, ylim=(len(values) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    if percent:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    else:
        log_axis(axes, "x")
    if len(values.columns) > 1:
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=7.5)
    return figure
