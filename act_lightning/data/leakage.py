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
from itertools import combinations, islice, pairwise
from zlib import crc32

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Owners = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]

_Runs = tuple[Hashes, Owners]
_NONE: _Runs = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int32)
RUN = 13
"""Words in a row that make two prompts the same material."""
_COMMON = 10  # a run in more prompts than these is a form of words, not material
_MOST_RUNS = 2**25  # of one set, 0.4 GB; beyond it every second run is left out, then three in four, …
_AT_ONCE = 4096  # prompts
_MULTIPLIERS = np.random.default_rng(0).integers(1, 2**63, RUN, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads a word's 32 bits over 64
_OPERATOR = re.compile(r"(?<=\d) *([-*/%]) *(?=\d)|[-*/%]")
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF))
"""Thai and Lao, Burmese, Khmer, kana and Chinese characters: scripts without blanks, whose letters count as words."""


class _Cleaning(dict[int, str]):
    """A table for ``str.translate``: blanks for punctuation and controls, but not for operators and other symbols."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        if unicodedata.category(letter)[0] in "PZC" and letter not in "-*/%":
            letter = " "
        elif any(first <= code <= last for first, last in _UNSPACED):
            letter = f" {letter} "
        self[code] = letter
        return letter


_CLEANING = _Cleaning()


def normalized(text: str) -> str:
    r"""Text without what does not matter: NFKC, casefolded, punctuation and white space as single blanks.

    Between two numbers ``- * / %`` stay, for a sum is another with another sign. Letters of scripts without blanks
    stand apart.

    >>> normalized("What  is “5 - 3”?\nWell-known: 苹果")
    'what is 5-3 well known 苹 果'
    """
    cleaned = unicodedata.normalize("NFKC", text).casefold().translate(_CLEANING)
    return " ".join(_OPERATOR.sub(lambda match: match[1] or " ", cleaned).split())


@dataclass(frozen=True)
class PromptHashes:
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

    def thinned(self, one_in: int) -> PromptHashes:
        """Only the runs that a set with fewer of them has kept, too."""
        return PromptHashes(self.texts, *_thinned((self.runs, self.owners), one_in), max(one_in, self.one_in))


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


def hash_prompts(prompts: Iterable[str], most_runs: int = _MOST_RUNS) -> PromptHashes:
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
    return PromptHashes(np.array(texts, dtype=np.uint64), runs[rare], owners[rare], one_in)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _runs_of(batch: list[str], first: int) -> _Runs:
    """Hashes of every 13 words in a row of some prompts, without repeats; the first prompt has number ``first``.

    They are multilinear modulo 2^64: a sum of the words' hashes, each times a number of its place.
    """
    words = [text.split() for text in batch]
    codes = np.array([crc32(word.encode()) for text in words for word in text], dtype=np.uint64) * _MIX
    owners = np.repeat(np.arange(first, first + len(batch), dtype=np.int32), [len(text) for text in words])
    count = len(codes) - RUN + 1
    if count < 1:
        return _NONE
    sums = np.zeros(count, dtype=np.uint64)
    for place, multiplier in enumerate(_MULTIPLIERS):
        sums += codes[place : place + count] * multiplier
    whole = owners[:count] == owners[RUN - 1 :]  # no run goes on into the next prompt
    mixed = sums ^ (sums >> np.uint64(32))  # the low bits alone would tell little
    return _without_repeats(mixed[whole], owners[:count][whole])


def _without_repeats(runs: Hashes, owners: Owners) -> _Runs:
    order = np.lexsort((runs, owners))
    runs, owners = runs[order], owners[order]
    new = np.ones(len(runs), dtype=np.bool_)
    new[1:] = (runs[1:] != runs[:-1]) | (owners[1:] != owners[:-1])
    return runs[new], owners[new]


def _thinned(part: _Runs, one_in: int) -> _Runs:
    kept = part[0] % np.uint64(one_in) == 0
    return part[0][kept], part[1][kept]


def _joined(parts: list[_Runs]) -> _Runs:
    runs, owners = zip(_NONE, *parts, strict=True)
    return np.concatenate(runs), np.concatenate(owners)


def overlaps(
    abilities: Mapping[str, PromptHashes], evaluations: Mapping[str, PromptHashes], more_than: float
) -> list[Overlap]:
    """Pairs of sets that share prompts: abilities among each other, and each with every evaluation set.

    Args:
        abilities: Hashes by name.
        evaluations: Hashes by name.
        more_than: Pairs that share no larger part than this are left out.

    Returns:
        The pairs, the largest share first.
    """
    named = {("ability", name): one for name, one in abilities.items()}
    named |= {("evaluation", name): one for name, one in evaluations.items()}
    one_in = max((one.one_in for one in named.values()), default=1)
    same, either = _found([one.thinned(one_in) for one in named.values()])
    sizes = [max(len(one.texts), 1) for one in named.values()]
    pairs = []
    for (i, (kind, first)), (j, (_, second)) in combinations(enumerate(named), 2):
        share = max(either[i, j] / sizes[i], either[j, i] / sizes[j])
        if kind == "ability" and share > more_than:
            counts = int(either[i, j]), int(either[j, i])
            pairs.append(Overlap(first, second, *counts, float(share), int(same[i, j])))
    return sorted(pairs, key=lambda pair: -pair.share)


def _found(sets: list[PromptHashes]) -> tuple[Counts, Counts]:
    """How many prompts of each set (rows) stand in each other one (columns): by text, and by text or run."""
    starts = np.cumsum([0, *(len(one.texts) for one in sets)])
    own = [np.arange(start, end) for start, end in pairwise(starts)]
    texts = _where(np.concatenate([_NONE[0], *(one.texts for one in sets)]), np.concatenate([_NONE[1], *own]), starts)
    owners = [one.owners + start for one, start in zip(sets, starts[:-1], strict=True)]
    runs = _where(np.concatenate([_NONE[0], *(one.runs for one in sets)]), np.concatenate([_NONE[1], *owners]), starts)
    return _counts(texts, starts), _counts(texts | runs, starts)


def _where(hashes: Hashes, prompts: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> Hashes:
    """In which sets each prompt stands, as bits: uint64 ``[prompts, sets / 64]``.

    Args:
        hashes: Hashes of all sets.
        prompts: The prompt that each belongs to, numbered through all sets.
        starts: The number of each set's first prompt, and of all.
    """
    words = len(starts) // 64 + 1
    found = np.zeros((starts[-1], words), dtype=np.uint64)
    if not len(hashes):
        return found
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order][1:] == hashes[order][:-1]
    order = order[np.append(False, equal) | np.append(equal, False)]  # few: what stands nowhere else is left out
    _, groups = np.unique(hashes[order], return_inverse=True)
    prompts = prompts[order]
    places = np.searchsorted(starts, prompts, side="right") - 1
    present = np.zeros((len(order), words), dtype=np.uint64)
    np.bitwise_or.at(present, (groups, places // 64), np.uint64(1) << (places % 64).astype(np.uint64))
    np.bitwise_or.at(found, prompts, present[groups])
    return found


def _counts(found: Hashes, starts: npt.NDArray[np.int64]) -> Counts:
    bits = [np.uint64(1) << np.uint64(place % 64) for place in range(len(starts) - 1)]
    return np.array(
        [
            [int((found[start:end, place // 64] & bit > 0).sum()) for place, bit in enumerate(bits)]
            for start, end in pairwise(starts)
        ],
        dtype=np.int64,
    ).reshape(len(bits), len(bits))
