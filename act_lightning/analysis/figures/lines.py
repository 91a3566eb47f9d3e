"""Figures of lines: CCDFs (Figures 1, 6 to 19 and 22), overlap at every p, and masks from fewer samples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import count

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from act_lightning.analysis.figures.style import (
    INK,
    MUTED,
    SERIES,
    EndLabel,
    label_ends,
    log_axis,
    ordinal,
    panels,
    styled,
)
from act_lightning.analysis.location import OUTSIDE
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
        by_layer: As from :func:`~act_lightning.analysis.location.ccdfs_by`.
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
