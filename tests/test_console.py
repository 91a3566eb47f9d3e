"""Progress in a log, and tables in a terminal and in a file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest

from act_lightning.console import Console, Table, progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advances the time that progress goes by."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_a_log_gets_a_line_every_ten_seconds(clock: Callable[[float], None]) -> None:
    log = io.StringIO()
    with progress_bar(total=35, desc="profiling s/d", unit="tok", file=log) as bar:
        for _ in range(35):
            clock(1.0)
            bar.update()
            bar.set_postfix(loss=1.5)
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    assert [re.findall(r"profiling s/d: +\d+ %, (\d+) of 35", line) for line in lines] == [
        ["10"],
        ["20"],
        ["30"],
        ["35"],
    ]


def test_short_work_and_other_processes_write_nothing(clock: Callable[[float], None]) -> None:
    log = io.StringIO()
    for _ in progress_bar(range(9), desc="short", file=log):
        clock(1.0)
    for _ in progress_bar(range(99), desc="other", file=log, disable=True):
        clock(1.0)
    assert log.getvalue() == ""


@pytest.mark.parametrize("size", [80, 160])
def test_no_value_is_cut(size: int) -> None:
    values = ["x" * 70, "1,234,567", "y" * 60]
    for in_terminal in (True, False):
        file, table = io.StringIO(), Table("name", "count", "other", box=None)
        table.add_row(*values)
        Console(file=file, force_terminal=in_terminal, width=size, color_system=None).print(table)
        text = file.getvalue()
        assert "…" not in text
        assert all(value in text for value in values) != (in_terminal and size == 80)
        assert "".join(values[0].split()) in text.replace("\n", "") or in_terminal
        assert not in_terminal or max(map(len, text.splitlines())) <= size
