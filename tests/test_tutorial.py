"""The tutorial runs, and what it shows is what stands in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from scripts.tutorial import NOTEBOOK, executed

RECOVERED = 70.0  # per cent of the words, after the transfer alone; the target has none


def outputs_of(notebook: Any) -> list[str]:
    """What each code cell shows, as text."""
    shown = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = (output.get("text") or output["data"]["text/plain"] for output in cell.outputs)
            shown.append("\n".join(texts))
    return shown


def words(shown: list[str]) -> list[float]:
    """How many words each model of the comparison gets right, in per cent."""
    (line,) = (line for line in "\n".join(shown).splitlines() if re.match(r" words +exact ", line))
    return [float(value) for value in re.findall(r"(?<![+-])\b\d+\.\d\b", line)]


def test_what_it_shows_is_kept_without_noise() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shown = outputs_of(notebook)
    assert words(shown)[0] < 5 < RECOVERED < words(shown)[1]
    assert sum(not text for text in shown) == 1, "the first cell shows nothing"
    for text in [*shown, str(notebook.cells)]:
        assert not re.search(r"\x1b|stderr|/tmp/|/root/|/home/|Traceback|it/s", text)


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    """To the same end, whatever the machine's last digits are."""
    shown = outputs_of(executed(NOTEBOOK, tmp_path))
    target, merged, tuned = words(shown)
    assert target < 5 < RECOVERED < merged < tuned
    assert shown[-1] == "(True, True)", "the patch is applied and reverted to the bit"
    committed = outputs_of(nbformat.read(NOTEBOOK, as_version=4))
    assert [bool(text) for text in shown] == [bool(text) for text in committed]
