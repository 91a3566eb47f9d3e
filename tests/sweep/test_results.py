"""Best point, front and comparison, against a slow re-statement and by hand."""

from __future__ import annotations

from itertools import product

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Annotation

from act_lightning.analysis.figures.sweeps import heat_map_figure, method_colors, scatter_figure, sensitivity_figure
from act_lightning.evaluation.tables import ItemScores
from act_lightning.sweep.results import (
    BEST,
    EQUAL_SCALE,
    EQUAL_SHARE,
    MethodResult,
    Outcome,
    best_point,
    compare_methods,
    equal_points,
    pareto_front,
)
from act_lightning.sweep.sweep_settings import UNMODIFIED, Point, SweepSettings, grid
from act_lightning.sweep.writing import SweepFindings, conclusions
from act_lightning.transfer.settings import TransferSettings

ITEMS = 10
AT = Point("act", 0.4, 0.01)


def outcome(keep: int, recover: int, share: float = 0.1, point: Point = AT) -> Outcome:
    right = {"k": "1" * keep + "0" * (ITEMS - keep), "r": "1" * recover + "0" * (ITEMS - recover)}
    return Outcome(point, {"k": "keep", "r": "recover"}, ItemScores(right), share)


TARGET = outcome(9, 2, 0.0, UNMODIFIED)


def test_the_best_point_keeps_what_it_must() -> None:
    greedy, careful = outcome(7, 9), outcome(8, 5)
    assert best_point([greedy, careful], TARGET, 20.0) is greedy
    assert best_point([greedy, careful], TARGET, 10.0) is careful
    assert best_point([greedy, careful], TARGET, 5.0) is None
    assert best_point([outcome(9, 5, 0.3), smaller := outcome(8, 5, 0.2)], TARGET, 10.0) is smaller


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_beats_the_front(pairs: list[tuple[int, int]]) -> None:
    front = {
        (round(one.keep * ITEMS), round(one.recover * ITEMS)) for one in pareto_front([outcome(*p) for p in pairs])
    }
    beaten = {(k, r) for k, r in pairs for other in pairs if other != (k, r) and other[0] >= k and other[1] >= r}
    assert front == {*pairs} - beaten


def test_where_methods_are_compared() -> None:
    settings = SweepSettings(methods="act, task_arithmetic, dare, random")
    points = equal_points(outcome(9, 5, 0.0473), settings, TransferSettings())
    assert points == {
        "task_arithmetic": {EQUAL_SCALE: Point("task_arithmetic", 0.4, 1.0)},
        "dare": {EQUAL_SCALE: Point("dare", 0.4, 0.01), EQUAL_SHARE: Point("dare", 0.4, 0.0473)},
        "random": {EQUAL_SCALE: Point("random", 0.4, 0.01), EQUAL_SHARE: Point("random", 0.4, 0.01)},
    }


def test_shares_that_differ_are_not_called_equal() -> None:
    settings, act = SweepSettings(methods="act, random, local"), outcome(9, 5, 0.00077)
    others = {
        name: outcome(9, 3, share, Point(name, 0.4, 0.01)) for name, share in (("random", 0.00033), ("local", 0.00077))
    }
    rows = compare_methods([act, *others.values()], TARGET, settings, TransferSettings())
    assert {row.outcome.point.method: row.basis for row in rows} == {
        "act": BEST,
        "random": f"{EQUAL_SCALE}, {BEST}",
        "local": f"{EQUAL_SCALE}, {EQUAL_SHARE}, {BEST}",
    }


def test_p_that_plays_no_part_is_not_walked() -> None:
    settings = SweepSettings(scales="0.5", ratios=[0.1, 0.2, 0.1], methods=["act", "task_arithmetic"])
    assert [(one.method, one.ratio) for one in grid(settings, TransferSettings())] == [
        ("act", 0.1),
        ("act", 0.2),
        ("task_arithmetic", 1.0),
    ]
    everything = grid(settings, TransferSettings(selection="all"))
    assert [(one.method, one.ratio) for one in everything] == [("act", 1.0), ("task_arithmetic", 1.0)]


def fair_coin(gained: int, lost: int) -> float:
    """How often as many fair coins fall at least as unevenly, by counting all their falls."""
    falls = [sum(coins) for coins in product((0, 1), repeat=gained + lost)]
    return sum(abs(2 * heads - gained - lost) >= abs(gained - lost) for heads in falls) / len(falls)


@pytest.mark.parametrize(("recover", "random"), [(9, 2), (4, 3), (2, 2), (3, 10)])
def test_conclusions_say_what_is_not_supported(recover: int, random: int) -> None:
    """By McNemar's test on the items to recover; equal items but for those that a model answers in addition."""
    act, other = outcome(9, recover), outcome(9, random, point=Point("random", 0.4, 0.01))
    methods = [MethodResult("its best", act), MethodResult(f"{EQUAL_SCALE}, {EQUAL_SHARE}", other)]
    sentences = conclusions(SweepFindings(TARGET, [act], 1.0, methods, TARGET))
    assert sentences[0] == "Keep is the accuracy on k, recover that on r."
    if recover == 2:
        assert sentences[1].startswith("No point improves on the target: of those that lose at most 1 point of keep,")
    else:
        assert sentences[1].startswith(
            "Best of 1 point, of those that lose at most 1 point of keep: act at λ 0.4, p 0.01"
        )
        supported = fair_coin(recover - 2, 0) < 0.05
        assert ("That it improves on the target is not supported here." in sentences[1]) is not supported
    claim = "act recovers {} than random at as many parameters"
    gained, lost = max(0, recover - random), max(0, random - recover)
    if fair_coin(gained, lost) < 0.05:
        assert sentences[2].startswith(claim.format("more" if gained else "less"))
    else:
        assert sentences[2].startswith(f"That {claim.format('more')} is not supported here")
    lost_too_much = [outcome(7, 10)]
    (_, sentence, *_) = conclusions(SweepFindings(TARGET, lost_too_much, 1.0, methods, TARGET))
    assert sentence.startswith("No point keeps enough: all 1 lose more than 1 point of keep; act at λ 0.4, p 0.01")


def test_colors_mean_the_same_for_every_method() -> None:
    frame = pd.DataFrame({"scale": [0.3, 0.3, 0.5, 0.5], "ratio": [0.1, 0.2] * 2, "keep": [0.5, 0.6, 0.7, 0.8]})
    limits = (0.2, 0.9)
    for draw in (heat_map_figure, scatter_figure):
        panel, bar = draw(frame, "keep", "sums (keep)", 0.75, limits).axes
        assert panel.get_title(loc="left") == "sums (keep) in % (target: 75.0)"
        assert bar.get_ylim() == pytest.approx(limits)
    mesh = heat_map_figure(frame, "keep", "sums (keep)", 0.75, limits).axes[0].collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == limits


@pytest.mark.parametrize("along", ["ratio", "scale"])
def test_names_stand_at_the_ends_of_their_lines(along: str) -> None:
    """At the heights of the limits that are drawn."""
    columns = [f"{role}{bound}" for role in ("keep", "recover") for bound in ("", "_low", "_high")]
    rows = [
        {"method": method, along: x, **dict.fromkeys(columns, y)}
        for method, y in (("act", 0.0), ("dare", 0.3))
        for x in (0.1, 0.5)
    ]
    target, colors = {"keep": 0.7, "recover": 0.1}, method_colors(["act", "dare"])
    figure = sensitivity_figure(pd.DataFrame(rows), along, target, colors, {"keep": "sums", "recover": "words"})
    for panel in figure.axes:
        assert len(panel.texts) == 3
        for text in panel.texts:
            assert isinstance(text, Annotation)
            end = panel.transAxes.inverted().transform(panel.transData.transform(text.xy))
            assert text.xyann[1] == pytest.approx(end[1], abs=0.01), text.get_text()


def test_mcnemar_pairs_items() -> None:
    after = Outcome(Point("act", 0.4, 0.01), TARGET.roles, ItemScores({"k": "0111111111", "r": "0011110000"}), 0.1)
    assert after.scores.against(TARGET.scores, "k")[:2] == (1, 1)
    assert after.scores.against(TARGET.scores, "r")[:2] == (4, 2)
