"""Abilities as labeled token ids on disk: cached by key, verified before use, mapped into memory, read by sample.

``Dataset.map`` of ``datasets`` would copy the rows to disk before it tokenizes them, lose the locations that errors
name, and not notice a damaged file; and importing it costs half a second that local files need not pay.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import multiprocessing
import os
import secrets
import shutil
import tempfile
import warnings
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import overload

import jinja2
import tokenizers
import torch
import transformers
from filelock import FileLock
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from act_lightning.checkpoints.files import atomic_folder, check_writable, remove_leftovers, wrap_os_errors
from act_lightning.console import progress_bar
from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import LocatedConversation, iter_conversations, rows_fingerprint
from act_lightning.data.labels import Encoder, Sample, fingerprint, has_answers
from act_lightning.data.tasks import Prompt
from act_lightning.data.templates import Template, resolve_template
from act_lightning.defaults import IGNORED, cache_folder
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

CACHE_VERSION = 1
"""Part of every key. Raise it with each change of this package after which the same rows, template and tokenizer give
other samples, or after which shards have another layout: in reading, selecting and converting rows, in templates, in
labels, or in this module. A change of comments, names or messages does not count."""
_MANIFEST = "manifest.json"
_SHARD_ROWS = 1024  # whatever the number of processes: the same files result
_BATCH_ROWS = 64  # rows that are rendered, tokenized and labeled at once, measured: more leave the processor's caches
_PENDING_SHARDS = 2  # for each process: rows are read no faster than they are tokenized
_MAX_PROCESSES = 16  # unless more are requested: one process reads the rows for all
_MAX_MAPPED_SHARDS = 1024  # the operating system limits the number of mappings

Shard = dict[str, Tensor]


def cache_key(rows: str, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """SHA-256 over everything that determines the samples: rows, template, tokenizer files, length and versions."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:  # tokenizers raises no other
            if "os error" not in str(error) and not isinstance(error, OSError):
                raise
            hint = "Free some space there, or set TMPDIR to another folder."
            raise ActError(ConfigIssue("TMPDIR", folder, f"must be writable ({error})", hint)) from error
        files = [(path.name, file_digest(path)) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    versions = [CACHE_VERSION, *(module.__version__ for module in (transformers, tokenizers, jinja2))]
    parts = [rows, type(template).__name__, template.source, type(tokenizer).__name__, files, max_length, versions]
    return _json_digest(parts)


def _json_digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    """Samples in files of :func:`save_shard`, read when they are accessed: they need not fit into memory.

    Args:
        shards: The files.
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
        """What ``statistic`` computes for the samples of a shard, ``[samples]``, without reading the rest of it."""
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


def largest_id(samples: Sequence[Sample] | Sequence[Prompt]) -> int:
    """The largest token id of all samples or prompts."""
    if isinstance(samples, StoredSamples):
        return max(samples.per_sample(_largest_ids), default=0)
    return max((int(sample.input_ids.max()) for sample in samples if len(sample.input_ids)), default=0)


def _largest_ids(shard: Shard) -> Tensor:
    """The largest token id in a shard for each of its samples, ``[samples]``."""
    return shard["input_ids"].max().long().expand(len(shard["ends"]))


def cut_samples(samples: Sequence[Sample]) -> int:
    """Number of samples that were cut at the maximum length."""
    if isinstance(samples, StoredSamples):
        return sum(samples.per_sample(lambda shard: shard["cut"]))
    return sum(sample.cut for sample in samples)


@dataclass(frozen=True)
class PreparedShard:
    """The name of a shard's file, which is not written without samples; its numbers of rows, empty rows and samples.

    Rows that are neither empty nor samples have no answer token within the maximum length.
    """

    file: str
    rows: int
    empty: int
    samples: int


def load_or_prepare(
    cache_dir: str | None, key: str | None, prepare: Callable[[Path], list[PreparedShard]]
) -> tuple[Path, list[PreparedShard]]:
    """The folder and the shards of a prepared set: the cached one if its digests match, or else prepared anew.

    Of several processes that call this at once, one prepares and the others wait.

    Args:
        cache_dir: Folder of all prepared sets, by default ``data`` in :func:`~act_lightning.defaults.cache_folder`; it
            need not be writable if the set is cached.
        key: A set without one is prepared for this process alone, and removed when the process ends.
        prepare: Writes shards into a folder.
    """
    root = cache_folder("data") if cache_dir is None else Path(cache_dir).expanduser()
    folder = root / (key or f"uncached-{os.getpid()}-{secrets.token_hex(4)}")
    if (shards := _load_verified(folder)) is not None:
        return folder, shards
    raise_if_any(check_writable(root, "data.cache_dir"))
    with wrap_os_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    if key is None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with nullcontext() if key is None else FileLock(root / f".{key}.lock"):
        if key is not None and (shards := _load_verified(folder)):
            return folder, shards
        remove_leftovers(root, folder.name)
        with atomic_folder(folder) as unfinished:
            shards = prepare(unfinished)
            digests = {shard.file: file_digest(unfinished / shard.file) for shard in shards if shard.samples}
            manifest = {"shards": [asdict(shard) for shard in shards], "digests": digests}
            (unfinished / _MANIFEST).write_text(json.dumps(manifest | {"digest": _json_digest(manifest)}))
    return folder, shards


def _load_verified(folder: Path) -> list[PreparedShard] | None:
    """The shards in a folder, or ``None`` if there is no set or it is damaged."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        intact = manifest.pop("digest") == _json_digest(manifest)
        intact = intact and all(file_digest(folder / file) == digest for file, digest in manifest["digests"].items())
    except (OSError, ValueError, LookupError, AttributeError):
        intact = False
    if not intact:
        rank_zero_info(f"the prepared set in {folder} is damaged: it is prepared again")
        return None
    return [PreparedShard(**entry) for entry in manifest["shards"]]


@dataclass(frozen=True)
class TokenizedAbility:
    """The samples of one ability.

    Attributes:
        name: Name of the ability.
        samples: Those that have answer tokens, in the order of the rows.
        rows: Number of rows read.
        dropped: Number of rows with an empty answer, or without any answer token.
        cut: Number of samples that were cut at ``max_length``.
    """

    name: str
    samples: Sequence[Sample]
    rows: int
    dropped: int
    cut: int

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all ids and labels in order."""
        return fingerprint(self.samples)

    @cached_property
    def tokens(self) -> int:
        """Number of answer tokens."""
        return answer_tokens(self.samples)

    def hold_out(self, share: float) -> tuple[TokenizedAbility, TokenizedAbility]:
        """The samples to train on, and the last ⌊n · share⌋, at least one; ``share`` is the decimal as written."""
        held_out = max(1, int(len(self.samples) * Fraction(str(share))))
        rest = len(self.samples) - held_out
        if rest < 1:
            problem = f"must leave a sample to train on, and {self.name} has {len(self.samples)}"
            hint = "Add rows, or name abilities to validate on."
            raise ActError(ConfigIssue("data.validation", share, problem, hint))
        first, last = self.samples[:rest], self.samples[rest:]
        training = replace(self, samples=first, rows=self.rows - held_out, cut=cut_samples(first))
        return training, TokenizedAbility(self.name, last, held_out, 0, cut_samples(last))


def tokenize_ability(
    name: str,
    settings: AbilityData,
    tokenizer: PreTrainedTokenizerBase,
    default_template: str,
    max_length: int,
    num_proc: int | None = None,
    cache_dir: str | None = None,
) -> TokenizedAbility:
    """The samples of an ability's rows, or those that an earlier call has cached.

    Raises:
        ActError: If its rows cannot be read or rendered, or none of them has an answer token.
    """
    where = f"data.abilities.{name}"
    template = resolve_template(settings, where, tokenizer, default_template)
    encoder = Encoder(template, tokenizer, max_length)
    digest = rows_fingerprint(settings, where)
    key = None if digest is None else cache_key(digest, template, tokenizer, max_length)
    title = f"tokenizing {name}"
    folder, shards = load_or_prepare(
        cache_dir, key, lambda path: prepare_shards(iter_conversations(settings, where), encoder, path, num_proc, title)
    )
    rows, empty = sum(shard.rows for shard in shards), sum(shard.empty for shard in shards)
    shards = [shard for shard in shards if shard.samples]
    samples = StoredSamples([folder / shard.file for shard in shards], [shard.samples for shard in shards])
    dropped = rows - len(samples)
    no_token = f"without an answer token in {max_length} tokens"
    causes = {"with an empty or no answer": empty, no_token: dropped - empty}
    reasons = ", ".join(f"{count:,} {cause}" for cause, count in causes.items() if count)
    if not samples:
        problem = f"must have a row with answer tokens, but all {rows} are dropped: {reasons}"
        prompts = [encoder.prompt_length(messages) for _, messages in iter_conversations(settings, where)]
        if known := [length for length in prompts if length is not None]:
            problem += f"; the shortest prompt takes {min(known)}"
        hint = "Check the answers, or raise data.max_length."
        raise ActError(ConfigIssue(where, settings.path, problem, hint))
    ability = TokenizedAbility(name, samples, rows, dropped, cut_samples(samples))
    lost = [f"{ability.cut:,} cut"] * bool(ability.cut) + [f"dropped: {reasons}"] * bool(dropped)
    rank_zero_info("; ".join([f"{name}: {len(samples):,} samples, {ability.tokens:,} answer tokens", *lost]))
    return ability


def prepare_shards(
    conversations: Iterable[LocatedConversation], encoder: Encoder, folder: Path, num_proc: int | None, title: str
) -> list[PreparedShard]:
    """Write the samples of all conversations into an empty folder; the shards are the same for any ``num_proc``.

    By default there is one process for each core, up to 16. Where a set has only one shard, or the system cannot fork,
    this process does the work.

    Raises:
        ActError: If a row cannot be read or rendered, with its location, or a process was killed.
    """
    if num_proc is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_proc = min(cores, _MAX_PROCESSES)
    rows = iter(conversations)
    chunks = enumerate(iter(lambda: list(islice(rows, _SHARD_ROWS)), []))
    first = list(islice(chunks, 2))
    all_chunks = chain(first, chunks)
    if len(first) < 2 or num_proc == 1 or "fork" not in multiprocessing.get_all_start_methods():
        results: Iterator[PreparedShard] = (_prepare_shard(encoder, folder, *chunk) for chunk in all_chunks)
    else:
        results = _prepare_in_processes(all_chunks, encoder, folder, num_proc)
    shards, is_quiet = [], rank_zero_only.rank != 0  # type: ignore[attr-defined]  # set at run time
    with progress_bar(desc=title, unit=" rows", delay=2.0, leave=False, disable=is_quiet) as bar:
        for shard in results:
            shards.append(shard)
            bar.update(shard.rows)
    return shards


def _prepare_in_processes(
    chunks: Iterable[tuple[int, list[LocatedConversation]]], encoder: Encoder, folder: Path, num_proc: int
) -> Iterator[PreparedShard]:
    # Forked, because spawned processes would run a script without a guard around its main part again.
    context = multiprocessing.get_context("fork")
    pending: deque[Future[PreparedShard]] = deque()
    with ProcessPoolExecutor(num_proc, context, _init_worker, (encoder, folder)) as pool:
        try:
            with warnings.catch_warnings():  # Python 3.12 warns of threads, of which these processes use none
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                pool.submit(os.getpid)  # starts all processes
            for chunk in chunks:
                pending.append(pool.submit(_prepare_in_worker, *chunk))
                if len(pending) > _PENDING_SHARDS * num_proc:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            hint = "Check whether memory ran out; fewer processes need less."
            raise ActError(ConfigIssue("data.num_proc", num_proc, "one of these processes was killed", hint)) from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker_state: tuple[Encoder, Path] | None = None  # of a forked process: a tokenizer is slow to pickle for every shard


def _init_worker(encoder: Encoder, folder: Path) -> None:
    global _worker_state
    _worker_state = encoder, folder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork: neither tokenizers' …
    torch.set_num_threads(1)  # … nor torch's


def _prepare_in_worker(number: int, rows: list[LocatedConversation]) -> PreparedShard:
    assert _worker_state is not None
    return _prepare_shard(*_worker_state, number, rows)


def _prepare_shard(encoder: Encoder, folder: Path, number: int, rows: list[LocatedConversation]) -> PreparedShard:
    samples: list[Sample] = []
    for start in range(0, len(rows), _BATCH_ROWS):
        locations, conversations = zip(*rows[start : start + _BATCH_ROWS], strict=True)
        samples += [sample for sample in encoder.encode_batch(conversations, locations) if sample is not None]
    file = f"{number:06}.safetensors"
    if samples:
        save_shard(folder / file, samples)
    empty = sum(not has_answers(row.messages) for row in rows)
    return PreparedShard(file, len(rows), empty, len(samples))
