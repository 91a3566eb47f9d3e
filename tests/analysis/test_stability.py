"""How sure masks are: the shortcut against all channels, tables by hand, and the report's section."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from act_lightning.analysis import mask_stability, overlaps_by_samples, samples_for
from act_lightning.analysis.overlaps import contenders
from act_lightning.analysis.report.evidence import gather
from act_lightning.analysis.report.page import Absent, Picture, Section
from act_lightning.analysis.report.score_sections import stability_section
from act_lightning.masks import bootstrap_overlaps, overlap_by_samples, ratio_count, split_half_overlaps, top_channels
from act_lightning.scores import ChunkScores, read_record, read_scores, score_path, write_chunks
from tests.analysis.runs import ABILITIES, tiny_channels, write_run

TOKENS, SAMPLES = [40, 10, 30, 20, 50, 25], [4, 1, 3, 2, 5, 2]
RATIO = 0.05


def chunk_scores(total: int = 400, seed: int = 0, noise: float = 0.3) -> ChunkScores:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(total, generator=generator).exp()
    each = truth * (1 + noise * torch.randn(len(TOKENS), total, generator=generator)).abs()
    return ChunkScores(each, TOKENS, SAMPLES)


def all_channels(scores: Tensor) -> Tensor:
    return top_channels(scores, RATIO, torch.ones_like(scores, dtype=torch.bool))


@pytest.mark.parametrize("seed", range(4))
def test_contenders_give_the_overlaps_of_all_channels(seed: int) -> None:
    one = chunk_scores(seed=seed)
    fewer, choose = contenders(one.scores, RATIO)
    assert ratio_count(400, RATIO) < fewer.shape[1] < 400
    for statistic in (bootstrap_overlaps, split_half_overlaps):
        assert statistic(fewer, TOKENS, choose) == statistic(one.scores, TOKENS, all_channels)
    whole = partial(overlap_by_samples, tokens=TOKENS, samples=SAMPLES)
    assert whole(fewer, choose=choose) == whole(one.scores, choose=all_channels)


def test_equal_scores_leave_all_channels_to_contend() -> None:
    scores = torch.ones(3, 20)
    fewer, choose = contenders(scores, 0.1)
    assert fewer.shape == scores.shape
    assert choose(fewer[0]).nonzero().squeeze(1).tolist() == [0, 1]


def test_tables_are_means_of_draws() -> None:
    one = chunk_scores()
    table = mask_stability({"a": one}, RATIO, repeats=7).loc["a"]
    drawn = bootstrap_overlaps(one.scores, TOKENS, all_channels, 7)
    assert table["bootstrap"] == pytest.approx(sum(drawn) / 7)
    assert min(drawn) <= table["5 %"] <= table["95 %"] <= max(drawn)
    halves = split_half_overlaps(one.scores, TOKENS, all_channels, 7)
    assert table["split half"] == pytest.approx(sum(halves) / 7)
    assert (table["samples"], table["chunks"]) == (sum(SAMPLES), len(SAMPLES))
    assert list(overlaps_by_samples({"a": one}, RATIO)["chunks"]) == [1, 2, 4, 6]


def test_samples_needed_are_the_fewest_that_give_so_much() -> None:
    table = pd.DataFrame(
        [("a", 1, 10.0, 0.5), ("a", 2, 20.0, 0.92), ("a", 4, 40.0, 1.0), ("b", 1, 9.0, 0.1), ("b", 4, 40.0, 1.0)],
        columns=["ability", "chunks", "samples", "overlap"],
    )
    assert samples_for(table, 0.9) == {"a": 20.0, "b": None}


def with_chunks(run: Path) -> Path:
    channels = tiny_channels()
    for number, ability in enumerate(ABILITIES[:2]):
        path = score_path(run / "scores", "source", ability)
        made = chunk_scores(channels.total, seed=number)
        record = dataclasses.replace(read_record(path), samples=sum(SAMPLES))
        write_chunks(path, channels, made, record)
        assert read_scores(path, channels).shape == made.scores.shape[1:]
    return run


def test_the_section_is_absent_without_chunks(tmp_path: Path) -> None:
    (missing,) = stability_section(gather([write_run(tmp_path / "run")], (RATIO,), weights=False, quiet=True))
    assert isinstance(missing, Absent)
    assert "profile.chunks" in missing.reason


def test_the_section_shows_the_abilities_that_have_chunks(tmp_path: Path) -> None:
    run = with_chunks(write_run(tmp_path / "run"))
    (section,) = stability_section(gather([run], (RATIO,), weights=False, quiet=True))
    assert isinstance(section, Section)
    assert "two halves share" in section.summary[0]
    picture = section.content[0]
    assert isinstance(picture, Picture)
    (axes,) = picture.draw().axes
    lines = {line.get_gid(): list(line.get_ydata()) for line in axes.lines if line.get_gid()}
    for number, (label, drawn) in enumerate(lines.items()):
        made = chunk_scores(tiny_channels().total, seed=number)
        found = overlaps_by_samples({label: made}, RATIO)
        assert drawn == pytest.approx(found["overlap"].tolist())
    assert len(lines) == 2
