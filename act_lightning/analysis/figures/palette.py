"""The colors of figures, each with its counterpart on a dark page; all can be told apart by color-blind readers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from matplotlib.colors import ListedColormap, to_hex, to_rgb

# The light value is what figures are drawn with and also the key of the color, so no two may be alike.
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
_RAMP = (("#f1f5fa", "#9cc4e4", "#3b82bd", "#0b2f5e"), ("#1b222b", "#22507c", "#4b93cf", "#d4eaff"))


def _interpolated(anchors: Sequence[str], steps: int) -> list[str]:
    """Colors evenly spaced along the line through ``anchors``."""
    found = []
    for step in range(steps):
        place = step * (len(anchors) - 1) / (steps - 1)
        at = min(int(place), len(anchors) - 2)
        start, end = to_rgb(anchors[at]), to_rgb(anchors[at + 1])
        red, green, blue = (a + (b - a) * (place - at) for a, b in zip(start, end, strict=True))
        found.append(to_hex((red, green, blue)))
    return found


RAMP = tuple(zip(*(_interpolated(anchors, _STEPS) for anchors in _RAMP), strict=True))
COLORS = {**_PLAIN, **_SERIES, **{f"ramp-{i}": pair for i, pair in enumerate(RAMP)}}
"""Light and dark value of every color by its name."""
INK, MUTED, GRID, SURFACE, ON_LOW, ON_HIGH = (light for light, _ in _PLAIN.values())
SERIES = tuple(light for light, _ in _SERIES.values())
SEQUENTIAL = ListedColormap([light for light, _ in RAMP], "sequential").with_extremes(bad=SURFACE)
_NAMES = {light: name for name, (light, _) in COLORS.items()}


def ordinal(count: int) -> list[str]:
    """``count`` colors of the ramp from early to late, none of them close to the page's."""
    strong = [light for light, _ in RAMP[5:]]
    return [strong[round(i * (len(strong) - 1) / max(1, count - 1))] for i in range(count)]


def with_variables(svg: str) -> str:
    """The SVG with every color as a CSS variable, for a page that defines light and dark values of them.

    Raises:
        ValueError: If a color of no name was used.
    """

    def variable(found: re.Match[str]) -> str:
        color = found.group(0).lower()
        if color not in _NAMES:
            raise ValueError(f"{color} is no color of the palette")
        return f"var(--{_NAMES[color]})"

    return re.sub(r"#[0-9a-fA-F]{6}\b", variable, svg)


def css_variables(dark: bool) -> str:
    """The declarations of all colors."""
    return " ".join(f"--{name}: {pair[dark]};" for name, pair in COLORS.items())
