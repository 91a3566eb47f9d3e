"""The page on scale shows what its script computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scale

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


@pytest.mark.slow
def test_the_page_shows_the_table() -> None:
    shown = PAGE.read_text(encoding="utf-8").split("<!-- made by python -m benchmarks.scale -->\n")[1]
    assert shown.split("\n<!-- end -->")[0] == scale.table()
