"""The figure of masks from fewer samples."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from act_lightning.analysis.figures.palette import SERIES
from act_lightning.analysis.figures.style import EndLabel, label_ends, log_axis, panels, styled

_NAMED = 12  # more names do not fit beside a panel


@styled
def samples_figure(overlaps: pd.DataFrame) -> Figure:
    """A line per ability: share of its whole mask against the number of samples, with its name at the left end.

    Args:
        overlaps: Columns ``ability``, ``samples`` and ``overlap``.
    """
    figure, (axes,) = panels((6.2,), 3.4)
    ends = []
    for number, (name, part) in enumerate(overlaps.groupby("ability", sort=False)):
        color = SERIES[number % len(SERIES)]
        axes.plot(part["samples"], part["overlap"], color=color, marker="o", ms=3, clip_on=False, gid=str(name))
        before = part.iloc[-2] if len(part) > 1 else part.iloc[-1]  # all lines end at 1
        ends.append(EndLabel(float(before["samples"]), float(before["overlap"]), str(name), color))
    axes.set(xlabel="samples", ylabel="share of the whole mask", ylim=(min(0.5, overlaps["overlap"].min()), 1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    log_axis(axes, "x")
    if len(ends) <= _NAMED:
        label_ends(axes, ends)
    return figure
