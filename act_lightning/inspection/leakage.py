"""Prompts that stand in two sets: found by normalized text and by runs of 13 words, held as hashes only.

The rule of thumb is GPT-3's: two texts that share 13 words in a row are the same material, unless these 13 words stand
in more than ten prompts of a set, as an instruction does (Brown et al. 2020, appendix C,
https://arxiv.org/abs/2005.14165).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from zlib import crc32

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Owners = npt.NDArray[np.int32]

RUN = 13
"""Words in a row that make two prompts the same material."""
_COMMON = 10  # a run in more prompts than these is a form of words, not material
_MOST_RUNS = 2**25  # of one set, 0.4 GB; beyond it every second run is left out, then three in four, …
_AT_ONCE = 4096  # prompts
_MULTIPLIERS = np.random.default_rng(0).integers(1, 2**63, RUN, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads a word's 32 bits over 64
_SPACED = re.compile(r"(?<=\d) *([-*/%]) *(?=\d)")
_LOOSE = re.compile(r"(?<!\d)[-*/%]|[-*/%](?!\d)")
# Scripts that write no blanks: every letter is a word.
_UNSPACED = re.compile(r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")


_Runs = tuple[Hashes, Owners]
_NONE: _Runs = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int32)


class _Cleaning(dict[int, str]):
    """A table for ``str.translate``: blanks for punctuation and controls, but not for operators and other symbols."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        blank = unicodedata.category(letter)[0] in "PZC" and letter not in "-*/%"
        self[code] = " " if blank else letter
        return self[code]


_CLEANING = _Cleaning()


def normalized(text: str) -> str:
    r"""Text without what does not matter: NFKC, casefolded, punctuation and white space as single blanks.

    Between two numbers ``- * / %`` stay, for a sum is another with another sign.

    >>> normalized("What  is “5 - 3”?\nWell-known!")
    'what is 5-3 well known'
    """
    cleaned = unicodedata.normalize("NFKC", text).casefold().translate(_CLEANING)
    return " ".join(_LOOSE.sub(" ", _SPACED.sub(r"\1", cleaned)).split())


@dataclass(frozen=True)
class Prompts:
    """The prompts of one set as hashes.

    Attributes:
        texts: Of the normalized text of each prompt, uint64 ``[prompts]``.
        runs: Of every 13 words in a row that are not common in the set, uint64 ``[runs]``.
        owners: Which prompt each run stands in, int32 ``[runs]``.
        one_in: Of how many runs one was kept; a power of two.
    """

    texts: Hashes
    runs: Hashes
    owners: Owners
    one_in: int = 1

    def thinned(self, one_in: int) -> Prompts:
        """Only the runs that a set with fewer of them has kept, too."""
        return Prompts(self.texts, *_thinned((self.runs, self.owners), one_in), max(one_in, self.one_in))

    def among(self, runs: Hashes) -> Prompts:
        """Only the runs that are among ``runs``."""
        kept = np.isin(self.runs, runs)
        return Prompts(self.texts, self.runs[kept], self.owners[kept], self.one_in)

    def found_in(self, other: Prompts) -> npt.NDArray[np.bool_]:
        """Which prompts stand in the other set, bool ``[prompts]``."""
        found = np.isin(self.texts, other.texts)
        found[self.owners[np.isin(self.runs, other.runs)]] = True
        return found


@dataclass(frozen=True)
class Overlap:
    """What two sets share.

    Attributes:
        first: Name of a set.
        second: Name of the other.
        first_shared: Prompts of the first that stand in the second, by text or by 13 words in a row.
        second_shared: Prompts of the second that stand in the first.
        share: The larger of their shares of all prompts of their sets.
        same_text: Prompts of the first whose whole text stands in the second.
    """

    first: str
    second: str
    first_shared: int
    second_shared: int
    share: float
    same_text: int


def hash_prompts(prompts: Iterable[str], most_runs: int = _MOST_RUNS) -> Prompts:
    """Read prompts a few at a time, and keep their hashes.

    Args:
        prompts: The texts.
        most_runs: Where there are more runs of words, only one in 2, 4, … is kept: those whose hash that divides.
    """
    texts, parts, one_in = array("Q"), list[_Runs](), 1
    cleaned = map(normalized, prompts)
    while batch := list(islice(cleaned, _AT_ONCE)):
        parts.append(_thinned(_runs_of(batch, len(texts)), one_in))
        texts.extend(_hash(text) for text in batch)
        while sum(len(runs) for runs, _ in parts) > most_runs:
            one_in *= 2
            parts = [_thinned(part, one_in) for part in parts]
    runs, owners = _joined(parts)
    distinct, times = np.unique(runs, return_counts=True)
    rare = ~np.isin(runs, distinct[times > _COMMON])
    return Prompts(np.array(texts, dtype=np.uint64), runs[rare], owners[rare], one_in)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _runs_of(batch: list[str], first: int) -> _Runs:
    """The runs of some prompts, with the numbers of their prompts, the first of which is ``first``."""
    found = [_runs(_UNSPACED.sub(r" \1 ", text).split()) for text in batch]
    return _joined([(runs, np.full(len(runs), first + place, dtype=np.int32)) for place, runs in enumerate(found)])


def _runs(words: list[str]) -> Hashes:
    """Multilinear hashes modulo 2^64 of every 13 words in a row, without repeats."""
    if len(words) < RUN:
        return _NONE[0]
    codes = np.array([crc32(word.encode()) for word in words], dtype=np.uint64) * _MIX
    windows = np.lib.stride_tricks.sliding_window_view(codes, RUN)
    sums = (windows * _MULTIPLIERS).sum(axis=1, dtype=np.uint64)
    return np.unique(sums ^ (sums >> np.uint64(32)))  # the low bits alone would tell little


def _thinned(part: _Runs, one_in: int) -> _Runs:
    kept = part[0] % np.uint64(one_in) == 0
    return part[0][kept], part[1][kept]


def _joined(parts: list[_Runs]) -> _Runs:
    runs, owners = zip(_NONE, *parts, strict=True)
    return np.concatenate(runs), np.concatenate(owners)


def overlaps(abilities: Mapping[str, Prompts], evaluations: Mapping[str, Prompts], more_than: float) -> list[Overlap]:
    """Pairs of sets that share prompts: abilities among each other, and each with every evaluation set.

    Args:
        abilities: Hashes by name.
        evaluations: Hashes by name.
        more_than: Pairs that share no larger part than this are left out.

    Returns:
        The pairs, the largest share first.
    """
    one_in = max((prompts.one_in for prompts in (*abilities.values(), *evaluations.values())), default=1)
    sets = [
        (name, kind, prompts.thinned(one_in))
        for kind, named in (("ability", abilities), ("evaluation", evaluations))
        for name, prompts in named.items()
    ]
    shared = _in_two([prompts.runs for _, _, prompts in sets])
    sets = [(name, kind, prompts.among(shared)) for name, kind, prompts in sets]
    found = []
    for place, (first, kind, prompts) in enumerate(sets):
        for second, _, others in sets[place + 1 :] if kind == "ability" else []:
            overlap = _overlap(first, prompts, second, others)
            found += [overlap] if overlap.share > more_than else []
    return sorted(found, key=lambda overlap: -overlap.share)


def _in_two(all_runs: list[Hashes]) -> Hashes:
    """Runs that at least two sets have: few, so that comparing every pair is cheap."""
    distinct = [np.unique(runs) for runs in all_runs]
    runs, times = np.unique(np.concatenate([_NONE[0], *distinct]), return_counts=True)
    return runs[times > 1]


def _overlap(first: str, prompts: Prompts, second: str, others: Prompts) -> Overlap:
    of_first, of_second = prompts.found_in(others), others.found_in(prompts)
    share = max((float(found.mean()) for found in (of_first, of_second) if len(found)), default=0.0)
    same = int(np.isin(prompts.texts, others.texts).sum())
    return Overlap(first, second, int(of_first.sum()), int(of_second.sum()), share, same)
