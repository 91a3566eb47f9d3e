"""Figures of a sweep: heat maps over λ and p, the Pareto front, and sensitivity to one of the two (Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from act_lightning.analysis.figures.findings import color_bar, draw_cells
from act_lightning.analysis.figures.style import (
    INK,
    MUTED,
    SEQUENTIAL,
    SERIES,
    SURFACE,
    EndLabel,
    label_ends,
    log_axis,
    panels,
    percent_axes,
    styled,
)

ROLES = ("keep", "recover")
RATIO, SCALE = "transfer ratio p", "scaling factor λ"
_CELL, _LABELS = 0.36, 1.3  # inches
_LOGARITHMIC = 5  # the range of p above which its axis is logarithmic
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")


@styled
def heat_map_figure(points: pd.DataFrame, role: str, label: str, target: float, limits: tuple[float, float]) -> Figure:
    """Mean accuracy in % over λ (rows) and p (columns), with the target's in the title.

    ``points`` has the columns ``scale``, ``ratio``, and ``keep`` or ``recover``, of one method; ``label`` names the
    sets, and ``limits`` are the accuracies at both ends of the colors.
    """
    grid = points.pivot_table(index="scale", columns="ratio", values=role).sort_index(ascending=False)
    named = grid.rename(index=lambda scale: f"{scale:.3g}", columns=lambda ratio: f"{100 * ratio:.3g}")
    width, height = _CELL * len(grid.columns) + _LABELS, 0.26 * len(grid) + 1.0
    figure, (axes,) = panels((max(3.2, width),), height)
    norm = _normalize(limits)
    draw_cells(axes, named, norm, lambda value: f"{100 * value:.0f}")
    color_bar(axes, norm, lambda value: f"{100 * value:.3g} %")
    axes.set_title(f"{label} in % (target: {100 * target:.1f})")
    axes.set(xlabel=f"{RATIO} in %", ylabel=SCALE)
    axes.xaxis.set_label_position("top")
    return figure


def _normalize(limits: tuple[float, float]) -> Normalize:
    low, high = limits
    return Normalize(low, high if high > low else low + 0.01)


@styled
def scatter_figure(points: pd.DataFrame, role: str, label: str, target: float, limits: tuple[float, float]) -> Figure:
    """Mean accuracy as the color of points that do not form a grid; otherwise as :func:`heat_map_figure`."""
    figure, (axes,) = panels((6.2,), 3.4)
    norm = _normalize(limits)
    shades = SEQUENTIAL(norm(points[role].to_numpy()))
    axes.scatter(points["ratio"], points["scale"], c=shades, s=46, edgecolors=MUTED, linewidths=0.6)
    color_bar(axes, norm, lambda value: f"{100 * value:.3g} %")
    axes.set_title(f"{label} in % (target: {100 * target:.1f})")
    axes.set(xlabel=RATIO, ylabel=SCALE)
    _ratio_axis(axes, points["ratio"])
    return figure


@styled
def front_figure(
    points: pd.DataFrame,
    front: pd.DataFrame,
    target: Mapping[str, float],
    best: Mapping[str, float] | None,
    colors: Mapping[str, str],
    labels: Mapping[str, str],
) -> Figure:
    """Keep against recover: all points, and a closer view of the Pareto front; target and best point are marked.

    ``points`` has the columns ``method``, ``keep`` and ``recover``; so has ``front``, in the order of the line.
    ``labels`` name the sets of both roles.
    """
    figure, axes = panels((4.5, 4.5), 3.6)
    markers = dict(zip(colors, cycle(_MARKERS), strict=False))
    rings = [(target, "target", MUTED, (-7, 9)), *([] if best is None else [(best, "best", INK, (7, -9))])]
    on_top: dict[str, Any] = {"facecolor": SURFACE, "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
    for panel in axes:
        panel.plot(front["recover"], front["keep"], color=MUTED, lw=0.9, drawstyle="steps-pre", gid="front", zorder=2)
        for method, part in points.groupby("method", sort=False):
            panel.plot(
                part["recover"], part["keep"], ls="", marker=markers[str(method)], ms=4,
                color=colors[str(method)], mec=SURFACE, mew=0.4, label=str(method), gid=str(method), zorder=3,
            )  # fmt: skip
        for point, name, color, offset in rings:
            x, y = point["recover"], point["keep"]
            panel.plot([x], [y], ls="", marker="o", ms=9, mec=color, mfc="none", mew=1.3, gid=name, zorder=4)
            panel.annotate(
                name, (x, y), offset, textcoords="offset points", color=color, fontsize=7.5, zorder=5, bbox=on_top,
                ha="right" if offset[0] < 0 else "left",
            )  # fmt: skip
        panel.set(xlabel=labels["recover"], ylabel=labels["keep"])
        percent_axes(panel.xaxis, panel.yaxis, spec=".3g")
        panel.margins(0.06)
    axes[0].set_title("all points")
    axes[1].set_title("about the front")
    for role, limit in (("recover", axes[1].set_xlim), ("keep", axes[1].set_ylim)):
        values = [*front[role], target[role]]
        margin = 0.08 * (max(values) - min(values)) + 0.01
        limit(min(values) - margin, max(values) + margin)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=6, frameon=False, fontsize=7.5)
    return figure


def method_colors(methods: Sequence[str]) -> dict[str, str]:
    """A color for each method, the same in all figures."""
    return {method: SERIES[number % len(SERIES)] for number, method in enumerate(dict.fromkeys(methods))}


@styled
def sensitivity_figure(
    curves: pd.DataFrame, along: str, target: Mapping[str, float], colors: Mapping[str, str], labels: Mapping[str, str]
) -> Figure:
    """Keep and recover against ``along`` (``ratio`` or ``scale``), a line per method with its 95 % interval (Figure 5).

    ``curves`` has the columns ``method``, ``along``, and ``keep`` and ``recover`` with ``_low`` and ``_high``.
    """
    figure, axes = panels((4.5, 4.5), 3.1)
    markers = dict(zip(colors, cycle(_MARKERS), strict=False))
    for panel, role in zip(axes, ROLES, strict=True):
        ends = []
        for name, part in curves.groupby("method", sort=False):
            curve, method, color = part.sort_values(along), str(name), colors[str(name)]
            x, y = curve[along], curve[role]
            panel.fill_between(x, curve[f"{role}_low"], curve[f"{role}_high"], color=color, alpha=0.1, lw=0)
            panel.plot(x, y, color=color, marker=markers[method], ms=3.2, gid=method)
            ends.append(EndLabel(float(x.iloc[-1]), float(y.iloc[-1]), method, color))
        panel.axhline(target[role], color=MUTED, lw=0.8, ls=(0, (2, 2)), gid="target", zorder=1)
        panel.set(title=labels[role], xlabel=RATIO if along == "ratio" else SCALE)
        if along == "ratio":
            _ratio_axis(panel, curves["ratio"])
        percent_axes(panel.yaxis, spec=".3g")
        last = float(curves[along].max())
        label_ends(panel, [*ends, EndLabel(last, target[role], "target", MUTED)], 0.075)
    return figure


def _ratio_axis(axes: Axes, ratios: Sequence[float] | pd.Series) -> None:
    if max(ratios) > _LOGARITHMIC * min(ratios):
        log_axis(axes, "x")
    percent_axes(axes.xaxis, spec=".3g")
