"""What a translation must keep: formulas, code and answers are replaced by marks, and the reply is checked for them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Literal

FinalAnswer = Literal["line", "value"]
MARK = re.compile(r"<\s*k(\d+)\s*/?\s*>", re.IGNORECASE)
"""A mark, also as a model may rewrite it: ``<K1 />``, ``<k1>``."""

_BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*\}"  # four deep: \boxed{\frac{a_{1}}{b}}
_OPERAND = r"\(?(?:[$€£]?\d[\d,]*(?:\.\d+)?%?|\d*[A-Za-z]\b)\)?"
_PROTECTED = re.compile(
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
    """A text in which marks replace the parts that must not change.

    The n-th of the parts in ``kept``, counted from one, has the mark ``<kn/>``. If ``final``, the last mark replaces a
    final answer: the last line, or the end of it.
    """

    text: str
    kept: tuple[str, ...]
    final: bool = False

    def restore(self, translated: str) -> str:
        """Put the original parts back into a translated text with the same marks, in any order."""
        return MARK.sub(lambda mark: self.kept[int(mark[1]) - 1], translated)


def protect(text: str, final_answer: FinalAnswer | None = None) -> Protected:
    """Replace what must not change by marks.

    Of a final answer, the whole ``line`` is kept, or its ``value``; ``final_answer`` is ``None`` for a prompt.
    """
    final = _final_answer(text, final_answer) if final_answer else None
    limit = final[0] if final else len(text)
    matches = [match.span() for match in _PROTECTED.finditer(text) if match.end() > match.start()]
    spans = [(start, min(end, limit)) for start, end in matches if start < limit]
    if final:
        spans.append(final)
    pieces, position = [], 0
    for number, (start, end) in enumerate(spans, start=1):
        pieces += [text[position:start], f"<k{number}/>"]
        position = end
    kept = tuple(text[start:end] for start, end in spans)
    return Protected("".join(pieces) + text[position:], kept, final is not None)


def _final_answer(text: str, part: FinalAnswer) -> tuple[int, int] | None:
    """The span of the final answer, if the last line gives one that is a number, a formula or an option."""
    end = len(text.rstrip())
    start = text.rfind("\n", 0, end) + 1
    match = _FINAL.fullmatch(text, start, end)
    if match is None or not _DEFINITE.search(match["value"]):
        return None
    return (start, end) if part == "line" else match.span("value")


_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?", re.ASCII)
_WORD = re.compile(r"[A-Za-z]{3,}")
_NUMBER_WORDS = dict(
    zip("zero one two three four five six seven eight nine ten eleven twelve".split(), map(str, count()), strict=False)
) | {"first": "1", "once": "1", "second": "2", "twice": "2", "double": "2", "both": "2", "pair": "2", "half": "2"}
_NUMBER_WORDS |= {"third": "3", "triple": "3", "thirteen": "13", "fourteen": "14", "fifteen": "15", "sixteen": "16"}
_NUMBER_WORDS |= {"seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30", "forty": "40"}
_NUMBER_WORDS |= {"fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90", "dozen": "12"}
_NUMBER_WORDS |= {"hundred": "100", "thousand": "1000", "million": "1000000"}
"""Words that some languages write in digits; compound ones are left to the model, which is asked to write words."""

_SCRIPTS = {
    "ar": ("ARABIC",),
    "bn": ("BENGALI",),
    "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "te": ("TELUGU",),
    "th": ("THAI",),
    "zh": ("CJK",),
}
"""Languages whose script gives them away, and the first words of their letters' Unicode names."""


def broken_rules(source: Protected, translated: str, language: str) -> list[str]:
    """What a translation (a reply with marks) into a language did not keep; empty if it may be used.

    >>> broken_rules(Protected("He has <k1/> of 12.", ("$x$",)), "Hat 13 közül.", "hu")
    ['mark <k1/> is missing', 'the number 12 is missing', 'the number 13 was added']
    """
    if source.text.strip() and not translated.strip():
        return ["it is empty"]
    marks = Counter(int(mark[1]) for mark in MARK.finditer(translated))
    expected = range(1, len(source.kept) + 1)
    issues = [f"mark <k{number}/> is missing" for number in expected if not marks[number]]
    issues += [f"mark <k{number}/> stands {times} times" for number, times in sorted(marks.items()) if times > 1]
    issues += [f"mark <k{number}/> is not in the original" for number in sorted(marks) if number not in expected]
    before, after = _numbers(source.text), _numbers(translated)
    spelled = {_NUMBER_WORDS.get(word) for word in re.findall(r"[a-z]+", source.text.lower())}
    issues += [f"the number {number} is missing" for number in before - after]
    issues += [f"the number {number} was added" for number in after - before if number not in spelled]
    if source.final and not issues and not _keeps_last(source, translated):
        issues.append(f"mark <k{len(source.kept)}/> must end the last line, as it does in the original")
    return issues + _language_issues(source.text, translated, language)


def _numbers(text: str) -> Counter[str]:
    return Counter(number.replace(",", "") for number in _NUMBER.findall(MARK.sub(" ", text)))


def _keeps_last(source: Protected, translated: str) -> bool:
    """Whether the final answer's mark ends the last line; a full stop may follow if words precede the mark."""
    source_line, line = (text.rstrip().rsplit("\n", 1)[-1].strip() for text in (source.text, translated))
    only_mark = MARK.fullmatch(source_line) is not None
    if not only_mark:
        line = line.rstrip(".。।")
    marks = list(MARK.finditer(line))
    ends = bool(marks) and int(marks[-1][1]) == len(source.kept) and marks[-1].end() == len(line)
    return ends and (marks[-1].start() == 0 or not only_mark)


def _language_issues(source: str, translated: str, language: str) -> list[str]:
    words = _WORD.findall(MARK.sub(" ", source))
    if len(words) < 3:  # nothing to tell a language by
        return []
    if source.split() == translated.split():
        return ["it was not translated"]
    letters = [unicodedata.name(letter, "") for letter in MARK.sub(" ", translated) if letter.isalpha()]
    script = _SCRIPTS.get(language)
    if script is None or 2 * sum(name.startswith(script) for name in letters) >= len(letters):
        return []
    return ["most of it is not in the script of the language asked for"]
