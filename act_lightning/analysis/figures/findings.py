"""Figures of lines: CCDFs (Figures 1, 6 to 19 and 22), overlap at every p, and masks from fewer samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

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
    styled,
)
from act_lightning.architecture import EMBEDDING_NAMES, HEAD_NAMES

SCORE = "averaged activation difference Δa"
CHANGE = "ℓ2 norm of the channel's weight change"
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.2, 1.5, 1.2)), (0, (3, 3)))
# The family of a type of module by words in its name, the first that fits; one color each.
_FAMILY_COLORS = (1, 4, 3, 2, 0)
_FAMILIES = (HEAD_NAMES, EMBEDDING_NAMES, ("norm", "ln_"), ("gate", "up", "down", "mlp", "fc", "h_to"), ("",))


@styled
def ccdf_figure(curves: pd.DataFrame, colors: Mapping[str, str], ratio: float) -> Figure:
    """CCDFs of the scores of all abilities in one plot (Figures 1a, 6 to 12).

    Args:
        curves: As from :func:`~act_lightning.analysis.distribution.ccdfs`.
        colors: Color by ability; those of one color are told apart by their labels.
        ratio: p, whose height is marked.
    """
    height = max(3.6, 0.165 * len(colors) + 0.9)
    figure, (axes,) = panels((7.4,), height)
    ends = [_line(axes, part, str(name), colors[str(name)], 1.1) for name, part in _parts(curves, "ability")]
    _log_log(axes, SCORE)
    axes.axhline(ratio, color=MUTED, lw=0.8, ls=(0, (2, 2)), zorder=1)
    place = ("axes fraction", "data")
    axes.annotate(f"top {100 * ratio:g} %", (0.01, ratio), xycoords=place, va="bottom", color=MUTED)
    label_ends(axes, ends, 0.16 / (height - 0.9))
    return figure


@styled
def places_figure(by_layer: pd.DataFrame, by_type: pd.DataFrame, quantity: str = SCORE) -> Figure:
    """CCDFs within each layer and within each type of module (Figures 1b, 1c, 13 to 19, 22).

    Args:
        by_layer: As from :func:`~act_lightning.analysis.distribution.ccdfs_by`.
        by_type: The same by type.
        quantity: What is on the horizontal axis.
    """
    figure, (left, right) = panels((4.9, 4.9), 3.7)
    _layers(left, by_layer, quantity)
    _types(right, by_type, quantity)
    right.sharex(left)
    return figure


@styled
def total_figure(curve: pd.DataFrame, quantity: str = CHANGE) -> Figure:
    """One CCDF over all channels (left part of Figure 22)."""
    figure, (axes,) = panels((4.9,), 3.2)
    _line(axes, curve, "", INK, 1.4)
    _log_log(axes, quantity)
    return figure


@styled
def ratios_figure(curves: pd.DataFrame) -> Figure:
    """Mean overlap of two abilities' masks against p, beside what chance gives.

    Args:
        curves: As from :func:`~act_lightning.analysis.overlaps.overlap_over_ratios`.
    """
    figure, (axes,) = panels((7.4,), 3.2)
    ends = []
    for (name, part), color in zip(_parts(curves, "group"), SERIES, strict=False):
        axes.plot(part["ratio"], part["overlap"], color=color, marker="o", ms=3, gid=str(name))
        ends.append(EndLabel(part["ratio"].iloc[-1], part["overlap"].iloc[-1], str(name), color))
    ratios = sorted(curves["ratio"].unique())
    axes.plot(ratios, ratios, color=MUTED, ls=(0, (2, 2)), gid="chance")
    axes.set(xlabel="transfer ratio p", ylabel="mean overlap", ylim=(0, 1))
    log_axis(axes, "x")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    label_ends(axes, [*ends, EndLabel(ratios[-1], ratios[-1], "chance", MUTED)], 0.07)
    return figure


def _parts(frame: pd.DataFrame, by: str) -> list[tuple[Hashable, pd.DataFrame]]:
    return list(frame.groupby(by, sort=False))


def _line(axes: Axes, curve: pd.DataFrame, name: str, color: str, width: float, dash: object = "-") -> EndLabel:
    """Draw a CCDF as far as logarithms go, and say where it ends."""
    shown = curve[(curve["threshold"] > 0) & (curve["share"] > 0)]
    axes.plot(shown["threshold"], shown["share"], color=color, lw=width, ls=dash, gid=name)
    if shown.empty:
        return EndLabel(1.0, 1.0, name, color)
    return EndLabel(shown["threshold"].iloc[-1], shown["share"].iloc[-1], name, color)


def _log_log(axes: Axes, quantity: str) -> None:
    axes.set(xlabel=quantity, ylabel="share of channels above")
    if not any(len(np.atleast_1d(line.get_xdata())) for line in axes.lines):
        axes.set(xlim=(0.1, 10), ylim=(0.001, 1))  # no value above 0: logarithms need limits
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.margins(x=0.02)


def _layers(axes: Axes, curves: pd.DataFrame, quantity: str) -> None:
    layers = [str(layer) for layer in curves["layer"].unique() if layer != OUTSIDE]
    colors = dict(zip(layers, ordinal(len(layers)), strict=True)) | {OUTSIDE: SERIES[1]}
    named = {*layers[:: max(1, -(-len(layers) // 6))], layers[-1], OUTSIDE} if layers else {OUTSIDE}
    ends = {
        str(layer): _line(axes, part, str(layer), colors[str(layer)], 1.0) for layer, part in _parts(curves, "layer")
    }
    _log_log(axes, quantity)
    axes.set_title("by layer")
    texts = [
        end._replace(text=end.text if end.text == OUTSIDE else f"layer {end.text}")
        for end in ends.values()
        if end.text in named
    ]
    label_ends(axes, texts)


def _types(axes: Axes, curves: pd.DataFrame, quantity: str) -> None:
    seen = [count() for _ in _FAMILIES]
    ends = []
    for kind, part in _parts(curves, "type"):
        family = _family(str(kind))
        dash = _DASHES[next(seen[family]) % len(_DASHES)]
        ends.append(_line(axes, part, str(kind), SERIES[_FAMILY_COLORS[family]], 1.1, dash))
    _log_log(axes, quantity)
    axes.set_title("by type of module")
    label_ends(axes, ends)


def _family(kind: str) -> int:
    return next(i for i, words in enumerate(_FAMILIES) if any(word in kind for word in words))


def ability_colors(domains: Mapping[str, str]) -> dict[str, str]:
    """A color for each ability: its own where there are few, else its domain's.

    Args:
        domains: The domain by ability.
    """
    keys: Sequence[str] = list(domains) if len(domains) <= len(SERIES) else list(dict.fromkeys(domains.values()))
    colors = {key: SERIES[i % len(SERIES)] for i, key in enumerate(keys)}
    return {name: colors.get(name) or colors[domain] for name, domain in domains.items()}


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


_CELL = 0.36  # inches
_LABELS = 1.3  # inches for the names of rows and columns


@styled
def overlap_figure(matrix: pd.DataFrame, groups: Sequence[object]) -> Figure:
    """Overlap of every two masks in % of the row's mask (Figure 20).

    Args:
        matrix: As from :func:`~act_lightning.analysis.overlaps.overlap_matrix`.
        groups: The group of each row, such as its language; a line stands between two groups.
    """
    size = max(3.2, _CELL * len(matrix) + _LABELS)
    figure, (axes,) = panels((size + 0.4,), size)
    values = matrix.mask(np.eye(len(matrix), dtype=bool))
    cells(axes, values, Normalize(0, max(0.01, float(np.nanmax(values)) if len(matrix) > 1 else 1.0)), _percent)
    for at in range(1, len(matrix)):
        if groups[at] != groups[at - 1]:
            axes.axhline(at, color=MUTED, lw=0.6)
            axes.axvline(at, color=MUTED, lw=0.6)
    axes.set(xlabel="compared ability (column)", ylabel="base ability (row)")
    axes.xaxis.set_label_position("top")
    return figure


@styled
def layers_figure(selected: pd.DataFrame) -> Figure:
    """Selected channels of one ability, layer × type of module: their number, and the share of the rows there.

    Args:
        selected: One ability's rows from :func:`~act_lightning.analysis.distribution.selected_by_module`.
    """
    counts, shares = (by_layer_and_type(selected, value) for value in ("selected", "share"))
    size = _CELL * len(counts.columns) + 1.0
    figure, (left, right) = panels((size, size), max(2.2, 0.19 * len(counts) + _LABELS))
    cells(left, counts.where(counts != 0), LogNorm(1, max(2.0, float(np.nanmax(counts)))), _compact, counts)
    cells(right, shares, Normalize(0, max(0.01, float(np.nanmax(shares)))), _percent)
    left.set(title="selected channels (0 left out)", ylabel="layer")
    right.set(title="share of the module's rows in %")
    return figure


@styled
def composition_figure(shares: pd.DataFrame) -> Figure:
    """Which share of each mask lies in which type of module, in %; the last row is that of all channels.

    Args:
        shares: As from :func:`~act_lightning.analysis.distribution.composition`.
    """
    width, height = 0.55 * len(shares.columns) + 1.4, 0.22 * len(shares) + _LABELS
    figure, (axes,) = panels((width,), max(2.2, height))
    cells(axes, shares, Normalize(0, float(np.nanmax(shares))), _percent)
    axes.axhline(len(shares) - 1, color=MUTED, lw=0.8)
    return figure


def cells(
    axes: Axes,
    values: pd.DataFrame,
    norm: Normalize,
    write: Callable[[float], str],
    existing: pd.DataFrame | None = None,
) -> None:
    """Colored cells with numbers; rows from top to bottom; what is NaN stays empty.

    Args:
        axes: The panel.
        values: The matrix.
        norm: From values to the ramp.
        write: A value as the text of its cell.
        existing: Cells that are NaN in ``values`` but not here are framed as well.
    """
    grid = values.to_numpy(dtype=float)
    axes.pcolormesh(np.ma.masked_invalid(grid), cmap=SEQUENTIAL, norm=norm, edgecolors=SURFACE, linewidth=0.8)
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            high = float(norm(value)) > 0.5
            color = ON_HIGH if high else ON_LOW
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


def _percent(value: float) -> str:
    """A share in %, as short as it may be.

    >>> [_percent(value) for value in (0.0, 0.0002, 0.004, 0.253, 0.9999)]
    ['0', '<.1', '0.4', '25', '100']
    """
    if 0 < value < 0.0005:
        return "<.1"
    return "0" if value == 0 else f"{100 * value:.1f}" if value < 0.0095 else f"{100 * value:.0f}"


def _compact(value: float) -> str:
    """A count in three letters.

    >>> [_compact(value) for value in (7, 940, 1234, 17505)]
    ['7', '940', '1.2k', '18k']
    """
    return f"{value:.0f}" if value < 1000 else f"{value / 1000:.1f}k" if value < 9950 else f"{value / 1000:.0f}k"
