"""Figures of the findings: CCDFs, overlaps, where selected channels lie, values with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from act_lightning.analysis.distribution import OUTSIDE, by_layer_and_type
from act_lightning.analysis.figures.style import (
    GRID,
    INK,
    MUTED,
    ON_HIGH,
    ON_LOW,
    SEQUENTIAL,
    SERIES,
    SURFACE,
    EndLabel,
    label_ends,
    log_axis,
    ordinal,
    panels,
    percent_axes,
    styled,
)
from act_lightning.architecture import EMBEDDING_NAMES, HEAD_NAMES

SCORE = "averaged activation difference Δa"
CHANGE = "ℓ2 norm of the channel's weight change"
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.2, 1.5, 1.2)), (0, (3, 3)))
_DOTTED = (0, (2, 2))
# The family of a type of module by words in its name, the first that fits; one color each.
_FAMILY_COLORS = (1, 4, 3, 2, 0)
_FAMILIES = (HEAD_NAMES, EMBEDDING_NAMES, ("norm", "ln_"), ("gate", "up", "down", "mlp", "fc", "h_to"), ("",))
_MAX_NAMES = 12  # more do not fit beside a panel
_MARKERS = ("o", "D", "s", "^", "v", "P")
_ROW = 0.62  # inches, for all series of a row
_CELL = 0.36  # inches
_NARROW, _WIDTH = 0.05, 9.0  # inches, of a cell without a number, and of all experts if these are many
_LABELS = 1.3  # inches for the names of rows and columns
_ALL = Normalize(0, 1)  # of shares, whose colors mean the same in all figures


@styled
def ccdf_figure(curves: pd.DataFrame, colors: Mapping[str, str], ratio: float, quantity: str = SCORE) -> Figure:
    """CCDFs of the scores of all abilities in one plot (Figures 1a, 6 to 12), with the height of p = ``ratio`` marked.

    ``curves`` is from :func:`~act_lightning.analysis.distribution.ccdfs`; abilities of one color are told apart by
    labels.
    """
    height = max(3.6, 0.165 * len(colors) + 0.9)
    figure, (axes,) = panels((7.4,), height)
    ends = [
        _draw_ccdf(axes, curve, str(name), colors[str(name)], 1.1)
        for name, curve in curves.groupby("ability", sort=False)
    ]
    _log_log(axes, quantity)
    axes.axhline(ratio, color=MUTED, lw=0.8, ls=_DOTTED, zorder=1)
    coordinates = ("axes fraction", "data")
    axes.annotate(f"top {100 * ratio:g} %", (0.01, ratio), xycoords=coordinates, va="bottom", color=MUTED)
    label_ends(axes, ends, 0.16 / (height - 0.9))
    return figure


@styled
def places_figure(by_layer: pd.DataFrame, by_type: pd.DataFrame, quantity: str = SCORE) -> Figure:
    """CCDFs within each layer and within each type of module (Figures 1b, 1c, 13 to 19, 22).

    Both tables are from :func:`~act_lightning.analysis.distribution.ccdfs_by`; ``quantity`` labels the horizontal axis.
    """
    figure, (left, right) = panels((4.9, 4.9), 3.7)
    layers = [str(layer) for layer in by_layer["layer"].unique() if layer != OUTSIDE]
    colors = dict(zip(layers, ordinal(len(layers)), strict=True)) | {OUTSIDE: SERIES[1]}
    labeled = {OUTSIDE, *layers[:: max(1, -(-len(layers) // 6))], *layers[-1:]}
    ends = []
    for layer, curve in by_layer.groupby("layer", sort=False):
        end = _draw_ccdf(left, curve, str(layer), colors[str(layer)], 1.0)
        if end.text in labeled:
            ends.append(end if end.text == OUTSIDE else end._replace(text=f"layer {end.text}"))
    _log_log(left, quantity)
    left.set_title("by layer")
    label_ends(left, ends)
    drawn, ends = [count() for _ in _FAMILIES], []
    for name, curve in by_type.groupby("type", sort=False):
        family = next(i for i, words in enumerate(_FAMILIES) if any(word in str(name) for word in words))
        dash = _DASHES[next(drawn[family]) % len(_DASHES)]
        ends.append(_draw_ccdf(right, curve, str(name), SERIES[_FAMILY_COLORS[family]], 1.1, dash))
    _log_log(right, quantity)
    right.set_title("by type of module")
    label_ends(right, ends)
    right.sharex(left)
    return figure


@styled
def total_figure(curve: pd.DataFrame, quantity: str = CHANGE) -> Figure:
    """One CCDF over all channels (left part of Figure 22)."""
    figure, (axes,) = panels((4.9,), 3.2)
    _draw_ccdf(axes, curve, "", INK, 1.4)
    _log_log(axes, quantity)
    return figure


def _draw_ccdf(axes: Axes, curve: pd.DataFrame, name: str, color: str, width: float, dash: object = "-") -> EndLabel:
    """Draw the part of a CCDF that has logarithms, and return where it ends."""
    part = curve[(curve["threshold"] > 0) & (curve["share"] > 0)]
    axes.plot(part["threshold"], part["share"], color=color, lw=width, ls=dash, gid=name)
    if part.empty:
        return EndLabel(1.0, 1.0, name, color)
    return EndLabel(part["threshold"].iloc[-1], part["share"].iloc[-1], name, color)


def _log_log(axes: Axes, quantity: str) -> None:
    axes.set(xlabel=quantity, ylabel="share of channels above")
    if not any(len(np.atleast_1d(line.get_xdata())) for line in axes.lines):
        axes.set(xlim=(0.1, 10), ylim=(0.001, 1))  # no value above 0: logarithms need limits
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.margins(x=0.02)


@styled
def ratios_figure(curves: pd.DataFrame) -> Figure:
    """Mean overlap of two abilities' masks against p, with that of chance.

    ``curves`` is from :func:`~act_lightning.analysis.overlaps.overlap_over_ratios`.
    """
    figure, (axes,) = panels((7.4,), 3.2)
    ends = []
    for (name, curve), color in zip(curves.groupby("group", sort=False), SERIES, strict=False):
        axes.plot(curve["ratio"], curve["overlap"], color=color, marker="o", ms=3, gid=str(name))
        ends.append(EndLabel(curve["ratio"].iloc[-1], curve["overlap"].iloc[-1], str(name), color))
    ratios = sorted(curves["ratio"].unique())
    axes.plot(ratios, ratios, color=MUTED, ls=_DOTTED, gid="chance")
    axes.set(xlabel="transfer ratio p", ylabel="mean overlap", ylim=(0, 1))
    log_axis(axes, "x")
    percent_axes(axes.xaxis, axes.yaxis)
    label_ends(axes, [*ends, EndLabel(ratios[-1], ratios[-1], "chance", MUTED)], 0.07)
    return figure


@styled
def samples_figure(overlaps: pd.DataFrame) -> Figure:
    """A line per ability: share of its whole mask against the number of samples, with its name at the left end.

    ``overlaps`` has the columns ``ability``, ``samples`` and ``overlap``.
    """
    figure, (axes,) = panels((6.2,), 3.4)
    ends = []
    for number, (name, curve) in enumerate(overlaps.groupby("ability", sort=False)):
        color = SERIES[number % len(SERIES)]
        axes.plot(curve["samples"], curve["overlap"], color=color, marker="o", ms=3, clip_on=False, gid=str(name))
        row = curve.iloc[-2] if len(curve) > 1 else curve.iloc[-1]  # all lines end at 1
        ends.append(EndLabel(float(row["samples"]), float(row["overlap"]), str(name), color))
    axes.set(xlabel="samples", ylabel="share of the whole mask", ylim=(min(0.5, overlaps["overlap"].min()), 1.0))
    percent_axes(axes.yaxis)
    log_axis(axes, "x")
    if len(ends) <= _MAX_NAMES:
        label_ends(axes, ends)
    return figure


def ability_colors(domains: Mapping[str, str]) -> dict[str, str]:
    """A color for each ability, given its domain: its own if there are few abilities, else the domain's."""
    keys: Sequence[str] = list(domains) if len(domains) <= len(SERIES) else list(dict.fromkeys(domains.values()))
    colors = {key: SERIES[i % len(SERIES)] for i, key in enumerate(keys)}
    return {name: colors.get(name) or colors[domain] for name, domain in domains.items()}


@styled
def dots_figure(
    values: pd.DataFrame, quantity: str, references: Mapping[str, float] | None = None, percent: bool = False
) -> Figure:
    """A row per ability, a dot per column (Figures 3 and 21); NaN leaves a dot out.

    ``references`` are values such as chance, by name, marked by a line over all rows. Without ``percent``, for shares,
    the horizontal axis is logarithmic.
    """
    figure, (axes,) = panels((7.4,), 0.2 * len(values) + 1.15)
    rows = list(range(len(values)))
    axes.hlines(rows, 0, 1, transform=axes.get_yaxis_transform(), color=GRID, lw=0.8)
    for i, name in enumerate(values.columns):
        color = SERIES[i % len(SERIES)]
        fill = color if i == 0 else SURFACE
        style: dict[str, Any] = {"marker": _MARKERS[i % len(_MARKERS)], "ms": 5, "mec": color, "mfc": fill}
        axes.plot(values[name], rows, gid=str(name), ls="", clip_on=False, label=str(name), **style)
    for name, value in (references or {}).items():
        axes.axvline(value, color=MUTED, lw=0.8, ls=_DOTTED, gid=name)
        axes.text(value, -0.55, f" {name}", va="bottom", color=MUTED, fontsize=7.5)
    axes.set_yticks(rows, [str(name) for name in values.index])
    axes.set(xlabel=quantity, ylim=(len(values) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    if percent:
        axes.set_xlim(left=0)
        percent_axes(axes.xaxis)
    else:
        log_axis(axes, "x")
    if len(values.columns) > 1:
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=7.5)
    return figure


@styled
def intervals_figure(values: pd.DataFrame, panel_names: Sequence[str], quantity: str) -> Figure:
    """A row per ability, in it one dot with its interval per series; panels share the rows, and zero is marked.

    ``values`` has the columns ``panel``, ``row``, ``series``, ``value``, ``low`` and ``high``.
    """
    rows, series = list(dict.fromkeys(values["row"])), list(dict.fromkeys(values["series"]))
    figure, axes = panels([3.7] * len(panel_names), _ROW * len(rows) + 1.15)
    for number, (panel, name) in enumerate(zip(axes, panel_names, strict=True)):
        panel.axvline(0, color=MUTED, lw=0.8, gid="zero")
        panel.hlines([i + 0.5 for i in range(len(rows) - 1)], 0, 1, transform=panel.get_yaxis_transform(), color=GRID)
        for i, label in enumerate(series):
            part = values[(values["panel"] == name) & (values["series"] == label)]
            heights = [rows.index(row) + 0.7 * ((i + 0.5) / len(series) - 0.5) for row in part["row"]]
            color = SERIES[i % len(SERIES)]
            below, above = part["value"] - part["low"], part["high"] - part["value"]
            panel.errorbar(
                part["value"], heights, xerr=[below, above], gid=f"{name}: {label}", label=None if number else label,
                fmt=_MARKERS[i % 4], ms=4.5, lw=1.1, color=color, mfc=color if i == 0 else SURFACE,
            )  # fmt: skip
        panel.set(title=name, xlabel=quantity, ylim=(len(rows) - 0.5, -0.5))
        panel.set_yticks(range(len(rows)), rows if number == 0 else [""] * len(rows))
        panel.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=len(series), frameon=False, fontsize=7.5)
    return figure


@styled
def overlap_figure(matrix: pd.DataFrame, groups: Sequence[object]) -> Figure:
    """Overlap of every two masks in % of the row's mask (Figure 20), with lines between groups such as languages.

    ``matrix`` is from :func:`~act_lightning.analysis.overlaps.overlap_matrix`; ``groups`` has the group of each row.
    Colors mean the same in all these figures.
    """
    size = max(3.2, _CELL * len(matrix) + _LABELS)
    figure, (axes,) = panels((size + 0.4,), size)
    values = matrix.mask(np.eye(len(matrix), dtype=bool))
    draw_cells(axes, values, _ALL, _percent)
    color_bar(axes, _ALL, lambda value: f"{100 * value:g} %")
    for i in range(1, len(matrix)):
        if groups[i] != groups[i - 1]:
            axes.axhline(i, color=MUTED, lw=0.6)
            axes.axvline(i, color=MUTED, lw=0.6)
    axes.set(xlabel="compared ability (column)", ylabel="base ability (row)")
    axes.xaxis.set_label_position("top")
    return figure


@styled
def layers_figure(selected: pd.DataFrame, most: float = 0.0, highest: float = 0.0) -> Figure:
    """Selected channels of one ability, layer × type of module: their number, and the share of the rows there.

    ``selected`` has one ability's rows from :func:`~act_lightning.analysis.distribution.selected_by_module`; ``most``
    and ``highest`` are the number and the share at the end of the colors, where these are larger elsewhere.
    """
    counts, shares = (by_layer_and_type(selected, value) for value in ("selected", "share"))
    size = _CELL * len(counts.columns) + 1.0
    figure, (left, right) = panels((size, size), max(2.2, 0.19 * len(counts) + _LABELS))
    count_norm = LogNorm(1, max(2.0, most, float(np.nanmax(counts))))
    share_norm = Normalize(0, max(0.01, highest, float(np.nanmax(shares))))
    draw_cells(left, counts.where(counts != 0), count_norm, _compact)
    draw_cells(right, shares, share_norm, _percent)
    color_bar(left, count_norm, _compact)
    color_bar(right, share_norm, lambda value: f"{100 * value:g} %")
    left.set(title="selected channels (0 left out)", ylabel="layer")
    right.set(title="share of the module's rows in %")
    return figure


@styled
def experts_figure(shares: pd.DataFrame, title: str, highest: float = 0.0) -> Figure:
    """A share of each expert of each layer, with numbers where there is room for them.

    ``shares`` is from :func:`~act_lightning.analysis.distribution.selected_by_expert` or ``used_by_expert``;
    ``highest`` is the share at the end of the colors, where that is larger elsewhere.
    """
    cell = min(_CELL, max(_NARROW, _WIDTH / len(shares.columns)))
    figure, (axes,) = panels((max(3.2, cell * len(shares.columns) + 1.4),), max(2.2, 0.19 * len(shares) + _LABELS))
    norm = Normalize(0, max(0.01, highest, float(np.nanmax(shares))))
    draw_cells(axes, shares, norm, _percent if cell == _CELL else None)
    color_bar(axes, norm, lambda value: f"{100 * value:g} %")
    step = int(np.ceil(_CELL / 2 / cell))
    axes.set_xticks(np.arange(0, len(shares.columns), step) + 0.5, [str(name) for name in shares.columns[::step]])
    axes.set(title=title, xlabel="expert", ylabel="layer")
    axes.xaxis.set_label_position("top")
    return figure


@styled
def composition_figure(shares: pd.DataFrame) -> Figure:
    """Which share of each mask lies in which type of module, in %; the last row is that of all channels.

    ``shares`` is from :func:`~act_lightning.analysis.distribution.composition`.
    """
    width, height = 0.55 * len(shares.columns) + 1.4, 0.22 * len(shares) + _LABELS
    figure, (axes,) = panels((width,), max(2.2, height))
    draw_cells(axes, shares, _ALL, _percent)
    color_bar(axes, _ALL, lambda value: f"{100 * value:g} %")
    axes.axhline(len(shares) - 1, color=MUTED, lw=0.8)
    return figure


def draw_cells(axes: Axes, values: pd.DataFrame, norm: Normalize, write: Callable[[float], str] | None) -> None:
    """Draw colored cells with numbers as ``write`` gives them, if any, rows from top to bottom; NaN stays empty."""
    grid = values.to_numpy(dtype=float)
    look: dict[str, Any] = {"edgecolors": SURFACE, "linewidth": 0.8} if write else {"rasterized": True}
    axes.pcolormesh(np.ma.masked_invalid(grid), cmap=SEQUENTIAL, norm=norm, **look)
    for (row, column), value in np.ndenumerate(grid):
        if write and not np.isnan(value):
            color = ON_HIGH if float(norm(value)) > 0.5 else ON_LOW
            text = axes.text(column + 0.5, row + 0.5, write(value), ha="center", va="center", fontsize=6.5, color=color)
            text.set_in_layout(False)  # it lies within its cell
    axes.set_xticks(np.arange(grid.shape[1]) + 0.5, [str(name) for name in values.columns], rotation=90)
    axes.set_yticks(np.arange(grid.shape[0]) + 0.5, [str(name) for name in values.index])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)


def color_bar(axes: Axes, norm: Normalize, write: Callable[[float], str]) -> None:
    """Draw the scale of a panel's colors beside it, with numbers as ``write`` gives them."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    bar = figure.colorbar(ScalarMappable(norm, SEQUENTIAL), ax=axes, fraction=0.05, pad=0.02, aspect=14)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(length=2, width=0.6)
    bar.ax.grid(visible=False)


def _percent(value: float) -> str:
    """A share in %, as short as possible.

    >>> [_percent(value) for value in (0.0, 0.0002, 0.004, 0.253, 0.9999)]
    ['0', '<.1', '0.4', '25', '100']
    """
    if 0 < value < 0.0005:
        return "<.1"
    return "0" if value == 0 else f"{100 * value:.1f}" if value < 0.0095 else f"{100 * value:.0f}"


def _compact(value: float) -> str:
    """A count in at most four characters.

    >>> [_compact(value) for value in (7, 940, 1234, 17505)]
    ['7', '940', '1.2k', '18k']
    """
    return f"{value:.0f}" if value < 1000 else f"{value / 1000:.1f}k" if value < 9950 else f"{value / 1000:.0f}k"
