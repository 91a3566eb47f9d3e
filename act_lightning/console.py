"""The terminal: text that may come from files as rich writes it, tables, progress and sizes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any, TypeAlias

import rich.console
import rich.table
import tqdm.auto
import tqdm.std
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from act_lightning.escaping import terminal_text

Progress: TypeAlias = tqdm.std.tqdm

LOG_SECONDS = 10.0
"""Between two lines of progress in a log."""
SHORT_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
"""tqdm's format without the rate, for bars with a long title or with losses, which then fit 80 columns."""
_LONG_TITLE = 30


class Console(rich.console.Console):
    """A console that takes no text for markup, highlights nothing, and escapes control characters in all it prints.

    A table is as wide as the terminal; in a file or pipe, which has no width, as wide as its longest values.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, in a file or pipe without wrapping text or the cells of a table."""
        if not self.is_terminal and len(objects) == 1 and isinstance(objects[0], rich.table.Table):
            unlimited = self.options.update_width(1 << 16)
            width, self.width = self.width, max(self.width, self.measure(objects[0], options=unlimited).maximum)
            super().print(*objects, **options)
            self.width = width
        else:
            if not self.is_terminal and all(isinstance(each, (str, Text)) for each in objects):
                options.setdefault("soft_wrap", True)
            super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a renderable of plain text, with control characters escaped before widths are measured."""
        return super().render_str(terminal_text(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with the texts of all segments escaped; rich's own control codes are no texts."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else terminal_text(text), style, control)


class Table(rich.table.Table):
    """A table whose cells go on in the next line, rather than be cut, where they are wider than the terminal."""

    def add_column(self, *headers: RenderableType, **options: Any) -> None:
        """Add a column."""
        super().add_column(*headers, **{"overflow": "fold", **options})


class _ProgressLines(tqdm.std.tqdm):  # type: ignore[misc]  # tqdm ships no types
    """Progress for a log: a line every ten seconds, and nothing of work that takes less."""

    disable: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        self._last_line, self._has_lines = time.monotonic(), False
        super().__init__(*args, **{**options, "mininterval": 1.0, "miniters": 1, "delay": 0})

    def refresh(self, *_: Any, **__: Any) -> bool:
        """Write a line if it is time, however often that is asked for."""
        if self.disable or time.monotonic() - self._last_line < LOG_SECONDS:
            return False
        self._last_line, self._has_lines = time.monotonic(), True
        return self.display()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line."""
        counts, times = "{percentage:.0f} %, {n_fmt} of {total_fmt}", "[{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        self.bar_format = f"{{desc}}: {counts} {times}" if self.total else None
        print(terminal_text(msg or self), file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """Write a last line if there were others."""
        if not self.disable:
            if self._has_lines and self.n > self.last_print_n:
                self.display()
            self.disable = True
            self._decr_instances(self)


def progress_bar(*args: Any, **options: Any) -> Progress:
    """A tqdm for these arguments: a bar in a terminal or notebook; in a log, a line every ten seconds."""
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.auto.tqdm.__mro__)
    bar = tqdm.auto.tqdm if in_notebook or sys.stderr.isatty() else _ProgressLines
    if len(options.get("desc") or "") > _LONG_TITLE and (args or options.get("total")):
        options.setdefault("bar_format", SHORT_BAR)
    return bar(*args, **options)


def format_bytes(count: float) -> str:
    """A size in the unit that suits it.

    >>> format_bytes(15_231_233_024), format_bytes(277_760), format_bytes(9_676), format_bytes(12)
    ('15.23 GB', '277.76 kB', '9.68 kB', '12 bytes')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f} bytes"
