"""Text from files on its way out: an escape for each place where text can be more than text.

Names and messages come from cards, patches, headers and rows that strangers wrote. Each function is called where the
text leaves the program, never where it is read.
"""

from __future__ import annotations

import logging
import re

# C0 without tab and line feed, DEL and C1, what turns the direction of text, line separators, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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
