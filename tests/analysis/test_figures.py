"""Figures by their data: what is drawn where, and that labels do not cover each other."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text
from transformers import AutoModelForCausalLM

from act_lightning.analysis import (
    ccdf,
    ccdfs,
    ccdfs_by,
    composition,
    overlap_matrix,
    overlap_over_ratios,
    pair_groups,
    read_abilities,
    selected_by_module,
    top_masks,
)
from act_lightning.analysis.distribution import by_layer_and_type, selected_by_expert, used_by_expert
from act_lightning.analysis.figures.findings import (
    ability_colors,
    ccdf_figure,
    composition_figure,
    dots_figure,
    experts_figure,
    layers_figure,
    overlap_figure,
    places_figure,
    ratios_figure,
    total_figure,
)
from act_lightning.analysis.figures.style import COLORS, render, with_variables
from act_lightning.channels import inventory
from tests.analysis.runs import tiny_channels
from tests.model_types import tiny_type_config

CHANNELS = tiny_channels()
LANGUAGES = "en zh ar bn hu ja ko sw te th vi".split()
ABILITIES = read_abilities([f"{domain}-{language}" for language in LANGUAGES for domain in ("math", "science")])


@pytest.fixture
def scores() -> dict[str, torch.Tensor]:
    return {label: torch.randn(CHANNELS.total).exp() for label in ABILITIES}


def drawn(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """The points of every named line."""
    lines = [line for axes in figure.axes for line in axes.lines if line.get_gid()]
    return {str(line.get_gid()): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def covering(figure: Figure) -> list[tuple[str, str]]:
    """Texts that cover each other."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        # of an annotation the text alone, not the line to its point
        texts = [text for text in (*axes.texts, *ticks, axes.title, axes.xaxis.label) if text.get_text()]
        boxes = [(text.get_text(), Text.get_window_extent(text, renderer)) for text in texts]
        found = [(a, b) for (a, x), (b, y) in combinations(boxes, 2) if x.padded(-1).overlaps(y.padded(-1))]
        if found:
            return found
    return []


def cells(figure: Figure) -> list[tuple[np.ndarray, list[str]]]:
    """Values and texts of every heat map, row by row."""
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    maps = [(axes, mesh) for axes in panels for mesh in axes.collections if isinstance(mesh, QuadMesh)]
    return [(np.ma.filled(mesh.get_array(), np.nan), [text.get_text() for text in axes.texts]) for axes, mesh in maps]


def test_the_ccdfs_of_22_abilities_stand_in_one_plot(scores: dict[str, torch.Tensor]) -> None:
    curves = ccdfs(scores, points=80)
    figure = ccdf_figure(curves, ability_colors({label: one.domain for label, one in ABILITIES.items()}), 0.01)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = drawn(figure)
    for label in ABILITIES:
        expected = curves[(curves["ability"] == label) & (curves["share"] > 0)]
        assert lines[label] == (list(expected["threshold"]), list(expected["share"]))
    assert {text.get_text() for text in axes.texts} == {*ABILITIES, "top 1 %"}
    assert covering(figure) == []


def test_places_are_drawn_per_layer_and_type(scores: dict[str, torch.Tensor]) -> None:
    by_layer, by_type = (ccdfs_by(scores["EN-Math"], CHANNELS, by) for by in ("layer", "type"))
    figure = places_figure(by_layer, by_type)
    lines = drawn(figure)
    assert set(lines) == {"0", "1", "outside", *by_type["type"]}
    expected = by_type[(by_type["type"] == "up_proj") & (by_type["share"] > 0)]
    assert lines["up_proj"] == (list(expected["threshold"]), list(expected["share"]))
    assert covering(figure) == []


def test_zeros_have_no_place_on_a_logarithmic_axis() -> None:
    figure = total_figure(ccdf(torch.tensor([0.0, 0.0, 1.0, 2.0])))
    (line,) = figure.axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1.0], [0.25])
    assert render(total_figure(ccdf(torch.zeros(4))), "png").startswith(b"\x89PNG")


def test_the_overlap_of_22_abilities(scores: dict[str, torch.Tensor]) -> None:
    matrix = overlap_matrix(top_masks(scores, 0.1))
    figure = overlap_figure(matrix, [ability.language for ability in ABILITIES.values()])
    ((values, texts),) = cells(figure)
    off_diagonal = ~np.eye(len(matrix), dtype=bool)
    assert np.array_equal(values[off_diagonal], matrix.to_numpy()[off_diagonal])
    assert np.isnan(values.diagonal()).all()
    assert len(texts) == 22 * 21
    assert float(texts[0]) == pytest.approx(100 * matrix.iloc[0, 1], abs=0.5)
    assert covering(figure) == []


def test_where_selected_channels_lie(scores: dict[str, torch.Tensor]) -> None:
    masks = top_masks(scores, 0.05)
    selected = selected_by_module({"EN-Math": masks["EN-Math"]}, CHANNELS)
    (counts, texts), (shares, _) = cells(layers_figure(selected))
    expected = by_layer_and_type(selected, "selected").to_numpy()
    assert np.array_equal(np.nan_to_num(counts), np.nan_to_num(expected))
    assert sorted(map(int, texts)) == sorted(expected[expected > 0].astype(int).tolist())
    assert np.array_equal(shares, by_layer_and_type(selected, "share").to_numpy(), equal_nan=True)
    table = composition(masks, CHANNELS)
    ((values, _),) = cells(composition_figure(table))
    assert np.array_equal(values, table.to_numpy())


def test_which_experts_are_selected_and_used() -> None:
    """A dense first layer; in the others a selected share that is counted channel by channel."""
    channels = inventory(AutoModelForCausalLM.from_config(tiny_type_config("deepseek_v3", num_hidden_layers=3)))
    experts = {f"model.layers.{layer}.mlp.experts": 4 for layer in (1, 2)}
    mask = torch.rand(channels.total, generator=torch.Generator().manual_seed(0)) < 0.3
    expected = np.zeros((2, 4))
    for module, span in channels.spans():
        if ".experts." in module.name:
            for i, selected in enumerate(mask[span].tolist()):
                expected[int(module.name.split(".")[2]) - 1, i // (module.count // 4)] += selected / (48 + 32)
    table = selected_by_expert(mask, channels, experts)
    assert (list(table.index), list(table.columns)) == (["1", "2"], [0, 1, 2, 3])
    figure = experts_figure(table, "selected")
    ((values, texts),) = cells(figure)
    np.testing.assert_allclose(values, expected)
    assert list(map(float, texts)) == pytest.approx((100 * expected).flatten().tolist(), abs=0.5)
    assert [axes.get_label() for axes in figure.axes].count("<colorbar>") == 1
    assert covering(figure) == []
    usage = {name: torch.tensor([[5, 0, 10, 1], [0, 0, 0, 9], [5, 0, 10, 9]]) for name in reversed(experts)}
    used = used_by_expert(usage, 10)
    assert (list(used.index), used.loc["2"].tolist()) == (["1", "2"], [0.5, 0.0, 1.0, 0.1])


def test_many_experts_fit_a_page_without_numbers() -> None:
    shares = pd.DataFrame(torch.rand(48, 128).numpy(), index=[str(layer) for layer in range(48)])
    figure = experts_figure(shares, "selected")
    ((values, texts),) = cells(figure)
    assert (values.shape, texts) == ((48, 128), [])
    assert figure.get_size_inches()[0] < 12
    assert covering(figure) == []


def test_dots_stand_at_their_values() -> None:
    values = pd.DataFrame({"overlap": [0.1, 0.3], "paper": [float("nan"), 0.25]}, index=["EN-Math", "AR-Math"])
    figure = dots_figure(values, "overlap", {"random": 0.01}, percent=True)
    lines = drawn(figure)
    assert lines["overlap"] == ([0.1, 0.3], [0, 1])
    assert lines["paper"][0][1] == 0.25
    assert lines["random"][0] == [0.01, 0.01]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["EN-Math", "AR-Math"]
    assert covering(figure) == []


def test_overlaps_at_every_ratio_stand_beside_chance(scores: dict[str, torch.Tensor]) -> None:
    table = overlap_over_ratios(scores, (0.03, 0.1, 0.3), pair_groups(ABILITIES))
    figure = ratios_figure(table)
    lines = drawn(figure)
    assert lines.pop("chance") == ([0.03, 0.1, 0.3], [0.03, 0.1, 0.3])
    for group, part in table.groupby("group"):
        assert lines[str(group)] == (list(part["ratio"]), list(part["overlap"]))
    assert covering(figure) == []


def test_every_color_is_one_of_the_palettes_and_keeps_its_bytes() -> None:
    figure = total_figure(ccdf(torch.rand(100)))
    svg = render(figure, "svg").decode()
    inline = with_variables(svg)
    assert not re.search(r"#[0-9a-fA-F]{6}", inline)
    assert {name for name in re.findall(r"var\(--([\w-]+)\)", inline)} <= set(COLORS)
    assert render(figure, "svg").decode() == svg
    with pytest.raises(ValueError, match="#123456 is no color"):
        with_variables("fill: #123456")
    assert len({light for light, _ in COLORS.values()}) == len(COLORS)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_stand_out_from_the_page(dark: bool) -> None:
    surface = luminance(COLORS["surface"][dark])
    for name, least in {
        "ink": 7,
        "muted": 4.5,
        "blue": 3,
        "vermilion": 3,
        "green": 3,
        "purple": 3,
        "orange": 2.8,
        "sky": 2.8,
    }.items():
        high, low = sorted((luminance(COLORS[name][dark]), surface), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= least, name


def luminance(color: str) -> float:
    """Relative luminance by WCAG 2, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
