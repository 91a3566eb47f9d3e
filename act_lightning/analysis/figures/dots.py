"""Figures of dots: values of abilities along a line (Figures 3 and 21), and values with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from act_lightning.analysis.figures.style import GRID, MUTED, SERIES, SURFACE, log_axis, panels, styled

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


_SHAPES = ("o", "D", "s", "^")
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
                fmt=_SHAPES[at % len(_SHAPES)], ms=4.5, lw=1.1, color=color, mfc=color if at == 0 else SURFACE,
            )  # fmt: skip
        one.set(title=name, xlabel=quantity, ylim=(len(rows) - 0.5, -0.5))
        one.set_yticks(range(len(rows)), rows if place == 0 else [""] * len(rows))
        one.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=len(series), frameon=False, fontsize=7.5)
    return figure
