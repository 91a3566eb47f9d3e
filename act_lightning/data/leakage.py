"""Prompts that occur in two sets: found by normalized text and by runs of 13 words, stored as hashes only.

The rule of thumb is GPT-3's: two texts that share 13 consecutive words are the same material, unless these words occur
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
_Runs = tuple[Hashes, Owners]

RUN = 13
"""Consecutive words that make two prompts the same material."""
_MAX_PROMPTS_PER_RUN = 10  # a run in more prompts is an instruction, not material
_MAX_RUNS = 2**25  # of one set, 0.4 GB; beyond it one run in 2, 4, … is kept
_BATCH = 4096  # prompts
_NO_RUNS: _Runs = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int32)
_MULTIPLIERS = np.random.default_rng(0).integers(1, 2**63, RUN, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads a word's 32 bits over 64
_OPERATOR = re.compile(r"(?<=\d) *([-*/%]) *(?=\d)|[-*/%]")
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF))
"""Thai and Lao, Burmese, Khmer, kana and Chinese characters: scripts without spaces, whose letters count as words."""


class _Cleaning(dict[int, str]):
    """A table for ``str.translate``: spaces for punctuation and controls, but not for operators and other symbols."""

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
    r"""Text without irrelevant differences: NFKC, casefolded, punctuation and white space as single spaces.

    Between two numbers ``- * / %`` stay, since a sum with another sign is another sum. Letters of scripts without
    spaces are separated.

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
        runs: Of every run of 13 words that is not common in the set, uint64 ``[runs]``.
        owners: The prompt that each run occurs in, int32 ``[runs]``.
        one_in: One in this many runs was kept; a power of two.
    """

    texts: Hashes
    runs: Hashes
    owners: Owners
    one_in: int = 1


@dataclass(frozen=True)
class Overlap:
    """What two sets share.

    Attributes:
        first: Name of a set.
        second: Name of the other.
        first_shared: Prompts of the first that occur in the second, by text or by 13 consecutive words.
        second_shared: Prompts of the second that occur in the first.
        share: The larger of their shares of all prompts of their sets.
        same_text: Prompts of the first whose whole text occurs in the second.
    """

    first: str
    second: str
    first_shared: int
    second_shared: int
    share: float
    same_text: int


def hash_prompts(prompts: Iterable[str], most_runs: int = _MAX_RUNS) -> PromptHashes:
    """Read prompts in batches, and keep their hashes.

    Where there are more runs than ``most_runs``, only one in 2, 4, … is kept: those whose hash that divides.
    """
    texts, parts, one_in = array("Q"), list[_Runs](), 1
    cleaned = map(normalized, prompts)
    while batch := list(islice(cleaned, _BATCH)):
        parts.append(_subsample(_hash_runs(batch, len(texts)), one_in))
        for text in batch:
            texts.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))
        while sum(len(runs) for runs, _ in parts) > most_runs:
            one_in *= 2
            parts = [_subsample(part, one_in) for part in parts]
    runs, owners = map(np.concatenate, zip(_NO_RUNS, *parts, strict=True))
    distinct, counts = np.unique(runs, return_counts=True)
    rare = ~np.isin(runs, distinct[counts > _MAX_PROMPTS_PER_RUN])
    return PromptHashes(np.array(texts, dtype=np.uint64), runs[rare], owners[rare], one_in)


def _hash_runs(batch: list[str], first: int) -> _Runs:
    """Hashes of all runs of 13 words in some prompts, without repeats; the first prompt has number ``first``.

    They are multilinear modulo 2^64: a sum of the words' hashes, each times a number for its position.
    """
    words = [text.split() for text in batch]
    codes = np.array([crc32(word.encode()) for text in words for word in text], dtype=np.uint64) * _MIX
    owners = np.repeat(np.arange(first, first + len(batch), dtype=np.int32), [len(text) for text in words])
    count = len(codes) - RUN + 1
    if count < 1:
        return _NO_RUNS
    sums = np.zeros(count, dtype=np.uint64)
    for position, multiplier in enumerate(_MULTIPLIERS):
        sums += codes[position : position + count] * multiplier
    whole = owners[:count] == owners[RUN - 1 :]  # no run continues into the next prompt
    runs, owners = (sums ^ (sums >> np.uint64(32)))[whole], owners[:count][whole]  # low bits alone would tell little
    order = np.lexsort((runs, owners))
    runs, owners = runs[order], owners[order]
    is_new = np.ones(len(runs), dtype=np.bool_)
    is_new[1:] = (runs[1:] != runs[:-1]) | (owners[1:] != owners[:-1])
    return runs[is_new], owners[is_new]


def _subsample(part: _Runs, one_in: int) -> _Runs:
    selected = part[0] % np.uint64(one_in) == 0
    return part[0][selected], part[1][selected]


def overlaps(
    abilities: Mapping[str, PromptHashes], evaluations: Mapping[str, PromptHashes], more_than: float
) -> list[Overlap]:
    """Pairs of abilities, or of one and an evaluation set, that share more than ``more_than`` of the prompts of one.

    The largest share comes first.
    """
    names = [("ability", name) for name in abilities] + [("evaluation", name) for name in evaluations]
    sets = [*abilities.values(), *evaluations.values()]
    same_text, shared = _count_shared(sets)
    sizes = [max(len(hashes.texts), 1) for hashes in sets]
    pairs = []
    for (i, (kind, first)), (j, (_, second)) in combinations(enumerate(names), 2):
        share = max(shared[i, j] / sizes[i], shared[j, i] / sizes[j])
        if kind == "ability" and share > more_than:
            counts = int(shared[i, j]), int(shared[j, i])
            pairs.append(Overlap(first, second, *counts, float(share), int(same_text[i, j])))
    return sorted(pairs, key=lambda pair: -pair.share)


def _count_shared(sets: list[PromptHashes]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many prompts of each set (rows) occur in each other one (columns): by text, and by text or run."""
    one_in = max((hashes.one_in for hashes in sets), default=1)  # runs that every set would have kept
    starts = np.cumsum([0, *(len(hashes.texts) for hashes in sets)])  # prompts are numbered through all sets
    texts, prompts = [_NO_RUNS[0]], [_NO_RUNS[1]]
    runs, owners = [_NO_RUNS[0]], [_NO_RUNS[1]]
    for hashes, (start, end) in zip(sets, pairwise(starts), strict=True):
        texts.append(hashes.texts)
        prompts.append(np.arange(start, end))
        part = _subsample((hashes.runs, hashes.owners), one_in)
        runs.append(part[0])
        owners.append(part[1] + start)
    by_text = _membership(np.concatenate(texts), np.concatenate(prompts), starts)
    by_run = _membership(np.concatenate(runs), np.concatenate(owners), starts)
    return _count_bits(by_text, starts), _count_bits(by_text | by_run, starts)


def _membership(hashes: Hashes, prompts: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> Hashes:
    """The sets that each prompt occurs in, as bits: uint64 ``[prompts, sets / 64]``.

    Args:
        hashes: Hashes of all sets.
        prompts: The prompt that each belongs to, numbered through all sets.
        starts: The number of each set's first prompt, and of all.
    """
    words = len(starts) // 64 + 1
    members = np.zeros((starts[-1], words), dtype=np.uint64)
    if not len(hashes):
        return members
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order][1:] == hashes[order][:-1]
    order = order[np.append(False, equal) | np.append(equal, False)]  # few: hashes that occur once are left out
    _, groups = np.unique(hashes[order], return_inverse=True)
    prompts = prompts[order]
    numbers = np.searchsorted(starts, prompts, side="right") - 1
    group_members = np.zeros((len(order), words), dtype=np.uint64)
    np.bitwise_or.at(group_members, (groups, numbers // 64), np.uint64(1) << (numbers % 64).astype(np.uint64))
    np.bitwise_or.at(members, prompts, group_members[groups])
    return members


def _count_bits(members: Hashes, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    count = len(starts) - 1
    counts = np.zeros((count, count), dtype=np.int64)
    for i, (start, end) in enumerate(pairwise(starts)):
        for j in range(count):
            bit = np.uint64(1) << np.uint64(j % 64)
            counts[i, j] = (members[start:end, j // 64] & bit > 0).sum()
    return counts
