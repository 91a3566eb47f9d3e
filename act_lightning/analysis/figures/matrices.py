"""Heat maps with their numbers in the cells: overlaps (Figure 20), and where selected channels lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from act_lightning.analysis.figures.style import MUTED, ON_HIGH, ON_LOW, SEQUENTIAL, SURFACE, panels, styled
from act_lightning.analysis.location import by_layer_and_type

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
        selected: One ability's rows from :func:`~act_lightning.analysis.location.selected_by_module`.
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
        shares: As from :func:`~act_lightning.analysis.location.composition`.
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
