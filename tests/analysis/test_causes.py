"""The report's section on the causal check: what it says follows from the file, and a damaged file is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from act_lightning.analysis.report.evidence import gather
from act_lightning.analysis.report.outcome_sections import causes_section
from act_lightning.analysis.report.page import Absent, Picture, ReportTable, Section
from act_lightning.errors import ActError
from tests.analysis.runs import write_run

EFFECTS = [
    ("source", "source", "target", -0.8, -0.9, -0.7, None),
    ("patch", "selected", "target", -0.4, -0.5, -0.3, 0.5),
    ("patch", "random", "target", -0.1, -0.2, 0.0, 0.125),
    ("patch", "same modules", "target", -0.3, -0.4, -0.2, 0.375),
    ("patch", "selected", "random", -0.3, -0.4, -0.2, 0.375),
    ("patch", "selected", "same modules", -0.1, -0.25, 0.05, 0.125),
    ("ablate", "selected", "target", 0.2, 0.1, 0.3, None),
    ("ablate", "random", "target", 0.1, 0.0, 0.2, None),
    ("ablate", "same modules", "target", 0.1, 0.0, 0.2, None),
]


def write_causes(run: Path, ability: str = "math-en") -> Path:
    names = ("intervention", "channels", "against", "change", "low", "high", "gap")
    effects = [dict(zip(names, row, strict=True)) | {"size": None} for row in EFFECTS]
    content: dict[str, Any] = {"source": "source", "ability": ability, "ratio": 0.02, "channels": 31, "samples": 64}
    path = run / "causes" / "source" / f"{ability}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"effects": effects}))
    return path


def section_of(run: Path) -> Section | Absent:
    return causes_section(gather([run], (0.02,), weights=False, quiet=True))[0]


def test_without_a_check_the_page_says_so(tmp_path: Path) -> None:
    missing = section_of(write_run(tmp_path / "run"))
    assert isinstance(missing, Absent)
    assert "`causes`" in missing.reason


def test_the_sentence_tells_selected_channels_from_others_only_where_the_interval_does(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_causes(run)
    section = section_of(run)
    assert isinstance(section, Section)
    assert section.summary == [
        "source: math-en: the source's activations in 31 selected channels change the loss by -0.4 nats a token "
        "(50 % of the way to the source's); lower than with as many random channels (-0.4 … -0.2); not told "
        "apart from as many channels of the same modules (-0.25 … +0.05)."
    ]


def test_the_figure_draws_what_the_table_says(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_causes(run)
    write_causes(run, "science-en")
    section = section_of(run)
    assert isinstance(section, Section)
    picture, table = section.content
    assert isinstance(picture, Picture)
    assert isinstance(table, ReportTable)
    assert len(table.frame) == 2 * len(EFFECTS)
    patched, ablated = picture.draw().axes
    for axes, kind in ((patched, "patch"), (ablated, "ablate")):
        wanted = [row[3] for row in EFFECTS if row[0] == kind and row[2] == "target"]
        points = [container.lines[0].get_xdata()[0] for container in axes.containers]
        assert points == wanted


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_causes(run).write_text('{"effects": [{}]}')
    with pytest.raises(ActError, match=r"math-en\.json"):
        section_of(run)
