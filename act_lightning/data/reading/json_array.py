"""A JSON array read one element at a time, so that a file may be larger than memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TextIO

from act_lightning.errors import ActError, Fault

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_CHUNK = 1 << 18
_LONGEST_MARK = 16
"""No token of JSON is longer, but strings and numbers."""


class JsonArray:
    """The elements of an array in a text file.

    Args:
        text: The file, read from where it stands.
        path: Its path, for messages.

    >>> from io import StringIO
    >>> list(JsonArray(StringIO('[{"prompt": "1?"}, {"prompt": "2?"}]'), "x.json"))
    [{'prompt': '1?'}, {'prompt': '2?'}]
    """

    def __init__(self, text: TextIO, path: str) -> None:
        self.file = text
        self.path = path
        self._text = ""
        self._at = 0

    def begins(self) -> bool:
        """Whether an array begins here."""
        return self._mark() == "["

    def __iter__(self) -> Iterator[object]:
        """The elements in their order.

        Raises:
            ActError: With the number of the row, at the first thing that is not JSON.
        """
        self._take("[", 1)
        if self._mark() == "]":
            self._take("]", 1)
        else:
            number = 1
            yield self._element(number)
            while self._mark() == ",":
                self._take(",", number)
                number += 1
                yield self._element(number)
            self._take("]", number)
        if rest := self._mark():
            raise self._broken(number, f"{rest!r} follows the array's end")

    def _element(self, number: int) -> object:
        self._mark()
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error) or not self._more():
                    raise self._broken(number, error.msg) from error
            except RecursionError as error:
                raise self._broken(number, "it is nested too deep") from error
            else:
                return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_MARK

    def _take(self, mark: str, number: int) -> None:
        if self._mark() != mark:
            raise self._broken(number, f"{mark!r} must follow, and {self._mark()!r} does")
        self._at += 1

    def _mark(self) -> str:
        """The next character that is not blank, or nothing at the end."""
        while True:
            self._at = match.end() if (match := _BLANK.match(self._text, self._at)) else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        chunk = self.file.read(_CHUNK)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)

    def _broken(self, number: int, why: str) -> ActError:
        shown = self._text[self._at :]
        remedy = 'Write an array of objects, such as [{"prompt": "…", "answer": "…"}].'
        return ActError(Fault(f"{self.path} row {number}", shown, f"is not JSON: {why}", remedy))
