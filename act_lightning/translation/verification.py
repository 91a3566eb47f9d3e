"""Whether a translation kept what it had to keep; what it broke is said in sentences a model can act on."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from itertools import count

from act_lightning.translation.protection import MARK, Protected

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
    """What a translation did not keep; empty if it may be used.

    Args:
        source: What was sent.
        translated: What came back, with marks.
        language: Code of the language it should be in.

    >>> broken_rules(Protected("He has <k1/> of 12.", ("$x$",)), "Hat 13 közül.", "hu")
    ['mark <k1/> is missing', 'the number 12 is missing', 'the number 13 was added']
    """
    if source.text.strip() and not translated.strip():
        return ["it is empty"]
    faults = _mark_faults(source, translated) + _number_faults(source.text, translated)
    if source.final and not faults and not _keeps_last(source, translated):
        faults.append(f"mark <k{len(source.kept)}/> must end the last line, as it does in the original")
    return faults + _language_faults(source.text, translated, language)


def _mark_faults(source: Protected, translated: str) -> list[str]:
    found = Counter(int(mark[1]) for mark in MARK.finditer(translated))
    wanted = range(1, len(source.kept) + 1)
    faults = [f"mark <k{number}/> is missing" for number in wanted if not found[number]]
    faults += [f"mark <k{number}/> stands {times} times" for number, times in sorted(found.items()) if times > 1]
    return faults + [f"mark <k{number}/> is not in the original" for number in sorted(found) if number not in wanted]


def _number_faults(source: str, translated: str) -> list[str]:
    before, after = _numbers(source), _numbers(translated)
    spelled = {_NUMBER_WORDS[word] for word in re.findall(r"[a-z]+", source.lower()) if word in _NUMBER_WORDS}
    faults = [f"the number {number} is missing" for number in before - after]
    return faults + [f"the number {number} was added" for number in after - before if number not in spelled]


def _numbers(text: str) -> Counter[str]:
    return Counter(number.replace(",", "") for number in _NUMBER.findall(MARK.sub(" ", text)))


def _keeps_last(source: Protected, translated: str) -> bool:
    """Whether the final answer's mark is the last of the last line; a full stop may follow where words precede it."""
    last = translated.rstrip().rsplit("\n", 1)[-1].strip()
    if not _last_line_is_one_mark(source):
        last = last.rstrip(".。।")
    marks = list(MARK.finditer(last))
    ends = bool(marks) and int(marks[-1][1]) == len(source.kept) and marks[-1].end() == len(last)
    return ends and (marks[-1].start() == 0 or not _last_line_is_one_mark(source))


def _last_line_is_one_mark(source: Protected) -> bool:
    return MARK.fullmatch(source.text.rstrip().rsplit("\n", 1)[-1].strip()) is not None


def _language_faults(source: str, translated: str, language: str) -> list[str]:
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
