"""The figures of the report: dataframes in, matplotlib figures out."""

from act_lightning.analysis.figures.curves import (
    CHANGE,
    SCORE,
    ability_colors,
    ccdf_figure,
    places_figure,
    ratios_figure,
    total_figure,
)
from act_lightning.analysis.figures.dots import dots_figure
from act_lightning.analysis.figures.intervals import intervals_figure
from act_lightning.analysis.figures.matrices import composition_figure, layers_figure, overlap_figure
from act_lightning.analysis.figures.palette import COLORS, css_variables, with_variables
from act_lightning.analysis.figures.samples import samples_figure
from act_lightning.analysis.figures.style import as_png, as_svg
from act_lightning.analysis.figures.sweeps import (
    front_figure,
    heat_map_figure,
    method_colors,
    scatter_figure,
    sensitivity_figure,
)

__all__ = [
    "CHANGE",
    "COLORS",
    "SCORE",
    "ability_colors",
    "as_png",
    "as_svg",
    "ccdf_figure",
    "composition_figure",
    "css_variables",
    "dots_figure",
    "front_figure",
    "heat_map_figure",
    "intervals_figure",
    "layers_figure",
    "method_colors",
    "overlap_figure",
    "places_figure",
    "ratios_figure",
    "samples_figure",
    "scatter_figure",
    "sensitivity_figure",
    "total_figure",
    "with_variables",
]
