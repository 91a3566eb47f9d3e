"""Tokenized sets on disk: cached by key, verified before use, mapped into memory and read one sample at a time.

``Dataset.map`` of ``datasets`` would copy the rows to disk before it tokenizes them, lose the locations that errors
name, and not notice a damaged file; and importing it costs half a second that local files need not pay.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import overload

import jinja2
import tokenizers
import torch
import transformers
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from act_lightning.checkpoints.files import atomic_folder, check_writable, wrap_os_errors
from act_lightning.data.labels import Sample
from act_lightning.data.templates import Template
from act_lightning.defaults import IGNORED, cache_folder
from act_lightning.errors import raise_if_any

CACHE_VERSION = 1
"""Part of every key. Raise it with each change of this package after which the same rows, template and tokenizer give
other samples, or after which shards have another layout: in reading, selecting and converting rows, in templates, in
labels, or in this module. A change of comments, names or messages does not count."""
_MANIFEST = "manifest.json"
_MAX_MAPPED_SHARDS = 1024  # the operating system limits the number of mappings

Shard = dict[str, Tensor]


def cache_key(rows: str, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """SHA-256 over everything that determines the samples: rows, template, tokenizer files, length and versions.

    Returns:
        64 hexadecimal digits.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = [(path.name, file_digest(path)) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    versions = [CACHE_VERSION, *(module.__version__ for module in (transformers, tokenizers, jinja2))]
    parts = [rows, type(template).__name__, template.source, type(tokenizer).__name__, files, max_length, versions]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_shard(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples one after the other: token ids, which of them are answers, texts, and where each sample ends."""
    texts = [sample.text.encode("utf-8", "surrogatepass") for sample in samples]
    tensors = {
        "input_ids": torch.cat([sample.input_ids for sample in samples]).int(),
        "answers": torch.cat([sample.labels != IGNORED for sample in samples]),
        "ends": torch.tensor(list(accumulate(len(sample.input_ids) for sample in samples))),
        "texts": torch.frombuffer(bytearray(b"".join(texts) or b"\0"), dtype=torch.uint8),
        "text_ends": torch.tensor(list(accumulate(map(len, texts)))),
        "cut": torch.tensor([sample.cut for sample in samples]),
    }
    save_file(tensors, path)


class StoredSamples(Sequence[Sample]):
    """Samples in shards, read when they are accessed: there may be more of them than fit into memory.

    Args:
        shards: Files written by :func:`save_shard`.
        counts: Number of samples in each.
        span: Which of the samples, by number; by default all.
    """

    def __init__(self, shards: Sequence[Path], counts: Sequence[int], span: range | None = None) -> None:
        self._shards, self._counts = shards, counts
        self._ends = list(accumulate(counts))
        self._span = range(sum(counts)) if span is None else span
        self._open: Callable[[Path], Shard] = lru_cache(_MAX_MAPPED_SHARDS)(load_file)  # maps the file, reads nothing

    def __reduce__(self) -> tuple[type[StoredSamples], tuple[Sequence[Path], Sequence[int], range]]:
        """Cross a process border without the mapped memory."""
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
        position = self._span[index]
        number = bisect_right(self._ends, position)
        shard = self._open(self._shards[number])
        row = position - (self._ends[number - 1] if number else 0)
        tokens, letters = (
            slice(int(ends[row - 1]) if row else 0, int(ends[row])) for ends in (shard["ends"], shard["text_ends"])
        )
        ids = shard["input_ids"][tokens].long()
        labels = torch.where(shard["answers"][tokens], ids, IGNORED)
        text = shard["texts"][letters].numpy().tobytes().decode("utf-8", "surrogatepass")
        return Sample(ids, labels, text, bool(shard["cut"][row]))

    def per_sample(self, statistic: Callable[[Shard], Tensor]) -> list[int]:
        """A statistic of each sample, without reading the rest of its shard.

        Args:
            statistic: Computes it for all samples of a shard, ``[samples]``.
        """
        values = [value for path in self._shards for value in statistic(self._open(path)).tolist()]
        return [values[position] for position in self._span]


_ZERO = torch.zeros(1, dtype=torch.int64)


def lengths(samples: Sequence[Sample]) -> list[int]:
    """Number of tokens of each sample."""
    if isinstance(samples, StoredSamples):
        return samples.per_sample(lambda shard: shard["ends"].diff(prepend=_ZERO))
    return [len(sample.input_ids) for sample in samples]


def answer_tokens(samples: Sequence[Sample]) -> int:
    """Number of answer tokens of all samples."""

    def count(shard: Shard) -> Tensor:
        return torch.cat([_ZERO, shard["answers"].cumsum(0)])[shard["ends"]].diff(prepend=_ZERO)

    if isinstance(samples, StoredSamples):
        return sum(samples.per_sample(count))
    return sum(int((sample.labels != IGNORED).sum()) for sample in samples)


def cut_samples(samples: Sequence[Sample]) -> int:
    """Number of samples that were cut at the maximum length."""
    if isinstance(samples, StoredSamples):
        return sum(samples.per_sample(lambda shard: shard["cut"]))
    return sum(sample.cut for sample in samples)


@dataclass(frozen=True)
class PreparedShard:
    """What became of the rows of one shard.

    Attributes:
        file: Name of its file; there is none when it has no samples.
        rows: Number of rows.
        empty: Number of rows with an empty answer or none.
        samples: Number of samples; the remaining rows have no answer token within the maximum length.
    """

    file: str
    rows: int
    empty: int
    samples: int


@dataclass(frozen=True)
class PreparedSet:
    """A prepared set.

    Attributes:
        samples: Its samples, read from disk when they are accessed.
        rows: Number of rows that they were made from.
        empty: Number of rows with an empty answer or none.
    """

    samples: StoredSamples
    rows: int
    empty: int


def load_or_prepare(
    cache_dir: str | None, key: str | None, prepare: Callable[[Path], list[PreparedShard]]
) -> PreparedSet:
    """The prepared set of a key: the cached one if its digests match, or else prepared anew.

    Of several processes that call this at once, one prepares and the others wait.

    Args:
        cache_dir: The folder of all prepared sets, by default ``data`` in :func:`~act_lightning.defaults.cache_folder`;
            it need not be writable if the set is cached.
        key: The cache key; a set without one is prepared for this process alone, and removed when the process ends.
        prepare: Writes shards into the folder it is given.

    Raises:
        ActError: If the folder cannot be written, or preparing fails.
    """
    root = cache_folder("data") if cache_dir is None else Path(cache_dir).expanduser()
    folder = root / (key or f"uncached-{os.getpid()}-{secrets.token_hex(4)}")
    cached = _load_verified(folder)
    if cached is not None:
        return cached
    raise_if_any(check_writable(root, "data.cache_dir"))
    with wrap_os_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    if key is None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return _prepare_folder(folder, prepare)
    with FileLock(root / f".{key}.lock"):
        return _load_verified(folder) or _prepare_folder(folder, prepare)


def _prepare_folder(folder: Path, prepare: Callable[[Path], list[PreparedShard]]) -> PreparedSet:
    with atomic_folder(folder) as unfinished:
        shards = prepare(unfinished)
        digests = {shard.file: file_digest(unfinished / shard.file) for shard in shards if shard.samples}
        manifest = {"shards": [asdict(shard) for shard in shards], "digests": digests}
        (unfinished / _MANIFEST).write_text(json.dumps(manifest | {"digest": _manifest_digest(manifest)}))
    return _open_set(folder, shards)


def _load_verified(folder: Path) -> PreparedSet | None:
    """The set in a folder, or ``None`` if there is none or it is damaged."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        intact = manifest.pop("digest") == _manifest_digest(manifest)
        intact = intact and all(file_digest(folder / file) == digest for file, digest in manifest["digests"].items())
    except (OSError, ValueError, LookupError, AttributeError):
        intact = False
    if not intact:
        rank_zero_info(f"the prepared set in {folder} is damaged: it is prepared again")
        return None
    return _open_set(folder, [PreparedShard(**entry) for entry in manifest["shards"]])


def _manifest_digest(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _open_set(folder: Path, shards: list[PreparedShard]) -> PreparedSet:
    nonempty = [shard for shard in shards if shard.samples]
    samples = StoredSamples([folder / shard.file for shard in nonempty], [shard.samples for shard in nonempty])
    return PreparedSet(samples, sum(shard.rows for shard in shards), sum(shard.empty for shard in shards))
