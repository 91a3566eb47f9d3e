"""Samples on disk: shards of safetensors, mapped into memory and read one sample at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import overload

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from act_lightning.data.labels import Sample
from act_lightning.defaults import IGNORED

Shard = dict[str, Tensor]
_MAPPED = 1024  # shards at once: the system bounds the number of mappings


def save_shard(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples one after the other: token ids, which of them are answers, texts, and where each sample ends.

    Args:
        path: A file of a folder that nobody reads yet.
        samples: One sample or more, labeled with their own ids or −100.
    """
    texts = [sample.text.encode("utf-8", "surrogatepass") for sample in samples]
    tensors = {
        "input_ids": torch.cat([sample.input_ids for sample in samples]).int(),
        "answers": torch.cat([sample.labels != IGNORED for sample in samples]),
        "ends": _ends(map(len, (sample.input_ids for sample in samples))),
        "texts": torch.frombuffer(bytearray(b"".join(texts) or b"\0"), dtype=torch.uint8),
        "text_ends": _ends(map(len, texts)),
        "cut": torch.tensor([sample.cut for sample in samples]),
    }
    save_file(tensors, path)


def _ends(lengths: Iterable[int]) -> Tensor:
    return torch.tensor(list(accumulate(lengths)))


class StoredSamples(Sequence[Sample]):
    """Samples in shards, read where they are asked for: there may be more of them than fit into memory.

    Args:
        shards: Files that :func:`save_shard` has written.
        counts: Number of samples in each.
        span: Which of the samples, by number; by default all.
    """

    def __init__(self, shards: Sequence[Path], counts: Sequence[int], span: range | None = None) -> None:
        self._shards, self._counts = shards, counts
        self._ends = list(accumulate(counts))
        self._span = range(sum(counts)) if span is None else span
        self._open: Callable[[Path], Shard] = lru_cache(_MAPPED)(load_file)  # which maps a file, and does not read it

    def __reduce__(self) -> tuple[type[StoredSamples], tuple[Sequence[Path], Sequence[int], range]]:
        """Cross a process border without what is mapped."""
        return StoredSamples, (self._shards, self._counts, self._span)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._span)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> StoredSamples: ...
    def __getitem__(self, index: int | slice) -> Sample | StoredSamples:
        """One sample, or a part of them that is read from the same shards."""
        if isinstance(index, slice):
            return StoredSamples(self._shards, self._counts, self._span[index])
        place = self._span[index]
        number = bisect_right(self._ends, place)
        first = self._ends[number - 1] if number else 0
        return _sample(self._open(self._shards[number]), place - first)

    def lengths(self) -> list[int]:
        """Number of tokens of each sample."""
        return self._of_each(lambda shard: shard["ends"].diff(prepend=torch.zeros(1, dtype=torch.int64)))

    def answer_tokens(self) -> list[int]:
        """Number of answer tokens of each sample."""
        return self._of_each(_answers_of_each)

    def cut(self) -> list[bool]:
        """Whether each sample was cut."""
        return [bool(cut) for cut in self._of_each(lambda shard: shard["cut"])]

    def _of_each(self, count: Callable[[Shard], Tensor]) -> list[int]:
        """What ``count`` says of each sample, without reading the rest of its shard."""
        found = [value for path in self._shards for value in count(self._open(path)).tolist()]
        return [found[place] for place in self._span]


def _sample(shard: Shard, number: int) -> Sample:
    tokens, text = (_bounds(shard[name], number) for name in ("ends", "text_ends"))
    ids = shard["input_ids"][tokens].long()
    labels = torch.where(shard["answers"][tokens], ids, IGNORED)
    written = shard["texts"][text].numpy().tobytes().decode("utf-8", "surrogatepass")
    return Sample(ids, labels, written, bool(shard["cut"][number]))


def _bounds(ends: Tensor, number: int) -> slice:
    return slice(int(ends[number - 1]) if number else 0, int(ends[number]))


def _answers_of_each(shard: Shard) -> Tensor:
    so_far = torch.cat([torch.zeros(1, dtype=torch.int64), shard["answers"].cumsum(0)])[shard["ends"]]
    return so_far.diff(prepend=torch.zeros(1, dtype=torch.int64))


def lengths(samples: Sequence[Sample]) -> list[int]:
    """Number of tokens of each sample."""
    if isinstance(samples, StoredSamples):
        return samples.lengths()
    return [len(sample.input_ids) for sample in samples]


def answer_tokens(samples: Sequence[Sample]) -> int:
    """Number of answer tokens of all samples."""
    if isinstance(samples, StoredSamples):
        return sum(samples.answer_tokens())
    return sum(int((sample.labels != IGNORED).sum()) for sample in samples)


def cut_samples(samples: Sequence[Sample]) -> int:
    """Number of samples that were cut at the limit of length."""
    if isinstance(samples, StoredSamples):
        return sum(samples.cut())
    return sum(sample.cut for sample in samples)
