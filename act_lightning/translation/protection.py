r"""Formulas, code and final answers leave the text before it is sent, and come back in their places.

A mark such as ``<k1/>`` stands for each. What the model never reads, it cannot change.

>>> hidden = protect("So $x^2 = 9$.\nThe answer is: 3", "line")
>>> hidden.text
'So <k1/>.\n<k2/>'
>>> hidden.restore("Tehát <k1/>.\n<k2/>")
'Tehát $x^2 = 9$.\nThe answer is: 3'
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

FinalAnswer = Literal["line", "value"]
MARK = re.compile(r"<\s*k(\d+)\s*/?\s*>", re.IGNORECASE)
"""A mark, also as a model may rewrite it: ``<K1 />``, ``<k1>``."""

_BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*\}"  # four deep: \boxed{\frac{a_{1}}{b}}
_OPERAND = r"\(?(?:[$€£]?\d[\d,]*(?:\.\d+)?%?|\d*[A-Za-z]\b)\)?"
_KEPT = re.compile(
    "|".join(
        (
            r"```.*?(?:```|\Z)",  # a block of code
            r"\\begin\{(?P<environment>[A-Za-z]+\*?)\}.*?\\end\{(?P=environment)\}",
            r"\$\$.+?\$\$",
            r"\\\[.+?\\\]",
            r"\\\(.+?\\\)",
            # Between single dollars by pandoc's rule, by which "$5 and $10" are sums of money: no blank inside either
            # dollar, no digit after the second. https://pandoc.org/MANUAL.html#extension-tex_math_dollars
            r"(?<!\\)\$(?![\s$])[^$\n]*?(?<![\s\\])\$(?!\d)",
            rf"\\[A-Za-z]+(?:\[[^\]\n]*\])?(?:[_^]?{_BRACES})*",  # \boxed{…} and other commands outside a formula
            r"`[^`\n]+`",
            r"https?://[^\s<>)]+",
            rf"(?<![\w.]){_OPERAND}(?:[ ]?[-+*/×÷=<>^][ ]?{_OPERAND})+(?!\w)",  # 2x + 3 = 7, without any markup
            r"^\#{4}[ ]*[-$\d][-$\d.,%/ ]*$",  # GSM8K's last line, #### 42
            MARK.pattern,  # a text that has such marks of its own
        )
    ),
    re.DOTALL | re.MULTILINE,
)
_FINAL = re.compile(
    r"[*_ ]*(?:(?:so|thus|hence|therefore),? +)?(?:the +)?(?:final +|correct +)?answer(?: +is[*_ ]*:?|[*_ ]*:)[*_ ]*"
    r"(?P<value>\S.{0,80})",
    re.IGNORECASE,
)
_DEFINITE = re.compile(r"[\d\\$`]|\W*[A-J]\W*\Z")  # a number, a formula, or the letter of an option; never a sentence


@dataclass(frozen=True)
class Protected:
    """A text whose parts that must not change are replaced by marks.

    Attributes:
        text: The text with marks in it.
        kept: What the marks stand for; the n-th mark, counted from one, is ``<kn/>``.
        final: Whether the last line, or the end of it, is a final answer, for which the last mark stands.
    """

    text: str
    kept: tuple[str, ...]
    final: bool = False

    def restore(self, translated: str) -> str:
        """The translated text with the kept parts in the places of their marks.

        Args:
            translated: A text whose marks are those of ``text``, in any order.
        """
        return MARK.sub(lambda mark: self.kept[int(mark[1]) - 1], translated)


def protect(text: str, final_answer: FinalAnswer | None = None) -> Protected:
    """Replace what must not change by marks.

    Args:
        text: A prompt or an answer.
        final_answer: What is kept of a final answer: its ``line``, or the ``value`` in it; ``None`` for a prompt.
    """
    final = _final_answer(text, final_answer) if final_answer else None
    limit = final[0] if final else len(text)
    spans = [(start, end) for start, end in _spans(text) if start < limit]
    if final:
        spans = [(start, min(end, limit)) for start, end in spans] + [final]
    pieces, done = [], 0
    for number, (start, end) in enumerate(spans, start=1):
        pieces += [text[done:start], f"<k{number}/>"]
        done = end
    kept = tuple(text[start:end] for start, end in spans)
    return Protected("".join(pieces) + text[done:], kept, final is not None)


def _spans(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _KEPT.finditer(text) if match.end() > match.start())


def _final_answer(text: str, wanted: FinalAnswer) -> tuple[int, int] | None:
    """Where the final answer stands, if the last line gives one that is a number, a formula or an option."""
    end = len(text.rstrip())
    start = text.rfind("\n", 0, end) + 1
    match = _FINAL.fullmatch(text, start, end)
    if match is None or not _DEFINITE.search(match["value"]):
        return None
    return (start, end) if wanted == "line" else match.span("value")
