"""Text from files on its way out: an escape for each place where text can be more than text.

Names and messages come from cards, patches, headers and rows that strangers wrote. Each function is called where the
text leaves the program, never where it is read.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Value = TypeVar("Value")

# C0 without tab and line feed, DEL and C1, what turns the direction of text, line separators, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_FORMULA = re.compile("\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]|\t")  # the last four are fullwidth
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?%?", re.IGNORECASE)


def terminal_text(text: object) -> str:
    r"""``text`` without what a terminal would obey: control characters are written as JSON writes them.

    JSON stays the same JSON.

    >>> print(terminal_text("a\x1b]52;c;aGk=\x07 b"))
    a\u001b]52;c;aGk=\u0007 b
    """
    return _UNSAFE.sub(lambda character: f"\\u{ord(character[0]):04x}", str(text))


class TerminalFilter(logging.Filter):
    """Escapes the messages of a log handler that writes to a terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Escape the message and keep the record."""
        record.msg, record.args = terminal_text(record.getMessage()), None
        return True


@contextmanager
def escaped_warnings() -> Iterator[None]:
    """Escape warnings where they become lines of text; whoever records them gets them as they are."""
    original: Any = warnings.formatwarning

    def escaped(*args: Any, **kwargs: Any) -> str:
        return terminal_text(original(*args, **kwargs))

    warnings.formatwarning = escaped
    try:
        yield
    finally:
        warnings.formatwarning = original


def markdown_text(text: object) -> str:
    r"""``text`` on one line of Markdown, without links, images, HTML, code or a new cell.

    >>> print(markdown_text("a | [b](https://c) `d` <e>\n# f"))
    a \| \[b\](https://c) \`d\` &lt;e> # f
    """
    line = " ".join(terminal_text(text).split())
    return re.sub(r"([\\`\[\]|])", r"\\\1", line).replace("<", "&lt;")


def markdown_code(text: object) -> str:
    r"""``text`` as code within a line of Markdown.

    >>> print(markdown_code("a"), markdown_code("a`\n## b"))
    `a` ``a` ## b``
    """
    line = " ".join(terminal_text(text).split())
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if not line or line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def csv_cell(value: Value) -> Value | str:
    """``value``, or a text that a spreadsheet would take for a formula with an apostrophe before it.

    >>> csv_cell("=cmd|' /C calc'!A0"), csv_cell("-0.5"), csv_cell(-0.5), csv_cell("math-en")
    ("'=cmd|' /C calc'!A0", '-0.5', -0.5, 'math-en')
    """
    if not isinstance(value, str):
        return value
    text = terminal_text(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def file_name(text: str) -> str:
    """``text`` as the name of a file, the id of an element and a link to either.

    >>> file_name('places-math"><script>'), file_name("../x"), file_name("")
    ('places-math-script', 'x', 'unnamed')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:100] or "unnamed"
