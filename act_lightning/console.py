"""The terminal as rich writes to it, for text that may come from files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from act_lightning.escaping import terminal_text


class Console(rich.console.Console):
    """A console that takes no text for markup, highlights nothing, and escapes control characters in all it prints."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a renderable of plain text, with control characters escaped before widths are measured."""
        return super().render_str(terminal_text(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with the texts of all segments escaped; rich's own control codes are no texts."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else terminal_text(text), style, control)
