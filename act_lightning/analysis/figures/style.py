"""The style of all figures, in colors that color-blind readers tell apart, and their export as SVG and PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, NamedTuple, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Light and dark value. Figures are drawn with the light one, which is also the key of the color, so no two are equal.
_PLAIN = {
    "ink": ("#1b2027", "#e6e9ed"),
    "muted": ("#5c6570", "#a5adb7"),
    "grid": ("#e2e6eb", "#333b45"),
    "surface": ("#ffffff", "#14181d"),
    "on-low": ("#1b2028", "#e6e9ee"),  # text on the lower half of the ramp
    "on-high": ("#fffffe", "#0d1014"),  # and on its upper half
}
# Okabe and Ito's colors without yellow, which is hard to see on white; https://jfly.uni-koeln.de/color/
_SERIES = {
    "blue": ("#0072b2", "#58a8e8"),
    "vermilion": ("#d55e00", "#ff8f4d"),
    "green": ("#009e73", "#2fc79a"),
    "purple": ("#b8609a", "#e79fc9"),
    "orange": ("#c98a00", "#f2bb46"),
    "sky": ("#3f9fd8", "#9fd6f7"),
}
_STEPS = 13
_EARLIEST = 5  # the first step of the ramp that stands out from the page
_RAMP = (("#f1f5fa", "#9cc4e4", "#3b82bd", "#0b2f5e"), ("#1b222b", "#22507c", "#4b93cf", "#d4eaff"))


def _interpolate(anchors: Sequence[str]) -> list[str]:
    """Colors evenly spaced along the line through ``anchors``."""
    colors = []
    for step in range(_STEPS):
        position = step * (len(anchors) - 1) / (_STEPS - 1)
        segment = min(int(position), len(anchors) - 2)
        start, end = to_rgb(anchors[segment]), to_rgb(anchors[segment + 1])
        red, green, blue = (a + (b - a) * (position - segment) for a, b in zip(start, end, strict=True))
        colors.append(to_hex((red, green, blue)))
    return colors


RAMP = tuple(zip(*map(_interpolate, _RAMP), strict=True))
COLORS = {**_PLAIN, **_SERIES, **{f"ramp-{i}": pair for i, pair in enumerate(RAMP)}}
"""Light and dark value of every color by its name."""
INK, MUTED, GRID, SURFACE, ON_LOW, ON_HIGH = (light for light, _ in _PLAIN.values())
SERIES = tuple(light for light, _ in _SERIES.values())
SEQUENTIAL = ListedColormap([light for light, _ in RAMP], "sequential").with_extremes(bad=SURFACE)
_NAMES = {light: name for name, (light, _) in COLORS.items()}


def ordinal(count: int) -> list[str]:
    """``count`` colors of the ramp from early to late, none of them close to the page's."""
    strong = [light for light, _ in RAMP[_EARLIEST:]]
    return [strong[round(i * (len(strong) - 1) / max(1, count - 1))] for i in range(count)]


def with_variables(svg: str) -> str:
    """Replace every color of an SVG by a CSS variable, for a page that defines light and dark values of them.

    Raises:
        ValueError: A color is not of the palette.
    """

    def variable(match: re.Match[str]) -> str:
        color = match.group(0).lower()
        if color not in _NAMES:
            raise ValueError(f"{color} is no color of the palette")
        return f"var(--{_NAMES[color]})"

    return re.sub(r"#[0-9a-fA-F]{6}\b", variable, svg)


def css_variables(dark: bool) -> str:
    """The declarations of all colors."""
    return " ".join(f"--{name}: {pair[dark]};" for name, pair in COLORS.items())


_P = ParamSpec("_P")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_STYLE: Any = {  # matplotlib types the keys one by one
    "font.family": "DejaVu Sans",  # comes with matplotlib
    **dict.fromkeys(("font.size", "axes.labelsize"), 8.5),
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), SURFACE),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 7.5),
    "lines.linewidth": 1.4,
    "text.parse_math": False,  # a name may hold dollars
    "svg.fonttype": "path",  # the same letters on every machine
    "svg.hashsalt": "act-lightning",  # the same bytes at every call
}


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Make a function draw its figure in our style, whatever the caller's settings of matplotlib."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks take their colors when they are first drawn
            figure.set_layout_engine("none")  # keep this layout instead of computing it at every drawing
        return figure

    return drawn


def panels(widths: Sequence[float], height: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side; widths and height in inches."""
    figure = Figure(figsize=(sum(widths), height), layout="constrained")
    axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=list(widths))
    return figure, list(axes[0])


def render(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """The figure as a file, cropped to its content: labels may lie outside of the figure's own size."""
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 144}
    with mpl.rc_context(_STYLE):
        data = io.BytesIO()
        figure.savefig(data, format=kind, bbox_inches=figure.get_tightbbox().padded(0.08), **options)
    if kind == "svg":  # matplotlib writes every text again as a comment, whatever is in it
        return re.sub(rb"<!--.*?-->", b"", data.getvalue(), flags=re.DOTALL)
    return data.getvalue()


def log_axis(axes: Axes, which: str) -> None:
    """Make axis ``x`` or ``y`` of a drawn panel logarithmic, with plain numbers; typeset ones take seconds."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if high / low < 3:
        axis.set_major_locator(MaxNLocator(5))  # may hold no power of ten at all
    elif high / low < 30:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    axis.set_minor_locator(NullLocator())


def percent_axes(*axes: Axis, spec: str = "g") -> None:
    """Write the ticks of axes of shares in %."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:{spec}} %"))


def plain_number(value: float) -> str:
    """A number on a logarithmic axis: large and small powers of ten as powers.

    >>> plain_number(0.01), plain_number(1e-5), plain_number(1000.0), plain_number(2e-5)
    ('0.01', '10⁻⁵', '1000', '2e-05')
    """
    exponent = round(math.log10(value)) if value > 0 else 0
    far = abs(exponent) > 3 and math.isclose(value, 10.0**exponent)
    return "10" + str(exponent).translate(_RAISED) if far else f"{value:g}"


class EndLabel(NamedTuple):
    """A line's name and color, with its end (x, y) in the units of the axes."""

    x: float
    y: float
    text: str
    color: str


def label_ends(axes: Axes, labels: Sequence[EndLabel], gap: float = 0.052) -> None:
    """Write names right of the panel at the height of the lines' ends, apart from each other, each tied to its end.

    The panel must hold all it will; ``gap`` is the least distance between two names as a share of its height.
    """
    axes.autoscale_view()  # matplotlib puts it off, and the transforms below would be those of earlier limits
    to_panel = axes.transAxes.inverted()
    heights = {label: float(to_panel.transform(axes.transData.transform((label.x, label.y)))[1]) for label in labels}
    order = sorted(labels, key=lambda label: (-heights[label], label.x))
    for label, height in zip(order, spread([heights[label] for label in order], gap), strict=True):
        line: dict[str, Any] = {"arrowstyle": "-", "color": label.color, "lw": 0.5, "relpos": (0, 0.5), "shrinkA": 1}
        axes.annotate(
            label.text, (label.x, label.y), (1.03, height), textcoords="axes fraction", va="center", fontsize=7.5,
            color=label.color, arrowprops=line | {"shrinkB": 1}, annotation_clip=False,
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move descending heights so that neighbors are ``gap`` apart, and none is below 0 while there is room.

    >>> spread([0.5, 0.49, 0.1], 0.1)
    [0.5, 0.4, 0.1]
    """
    moved: list[float] = []
    for height in heights:
        moved.append(min(height, moved[-1] - gap) if moved else height)
    floor = 0.0
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = max(moved[i], floor)
        floor = moved[i] + gap
    return [round(height, 6) for height in moved]
