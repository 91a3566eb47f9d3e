"""One ability as labeled token ids: prepared by several processes, with counts of dropped and cut rows."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.cache import (
    PreparedShard,
    answer_tokens,
    cache_key,
    cut_samples,
    load_or_prepare,
    save_shard,
)
from act_lightning.data.conversations import LocatedConversation, iter_conversations, rows_fingerprint
from act_lightning.data.labels import Encoder, Sample, has_answers
from act_lightning.data.templates import resolve_template
from act_lightning.errors import ActError, ConfigIssue

_SHARD_ROWS = 1024  # whatever the number of processes: the same files result
_BATCH_ROWS = 64  # rows that are rendered, tokenized and labeled at once, measured: more leave the processor's caches
_PENDING_SHARDS = 2  # for each process: rows are read no faster than they are tokenized
_MAX_PROCESSES = 16  # unless more are requested: one process reads the rows for all


def fingerprint(samples: Iterable[Sample]) -> str:
    """SHA-256 over the length, the ids and the labels of every sample, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(len(sample.input_ids).to_bytes(8, "little"))
        digest.update(sample.input_ids.numpy().astype("<i8").tobytes())
        digest.update(sample.labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class TokenizedAbility:
    """The samples of one ability.

    Attributes:
        name: Name of the ability.
        samples: Those that have answer tokens, in the order of the rows; read from disk when they are accessed.
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
        """Split off the last ⌊n · share⌋ samples, at least one; ``share`` is taken as the decimal it is written as.

        Returns:
            The other samples, and those held out.

        Raises:
            ActError: If no other sample is left.
        """
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

    def prepare(folder: Path) -> list[PreparedShard]:
        return prepare_shards(iter_conversations(settings, where), encoder, folder, num_proc, f"tokenizing {name}")

    rows = rows_fingerprint(settings, where)
    key = None if rows is None else cache_key(rows, template, tokenizer, max_length)
    prepared = load_or_prepare(cache_dir, key, prepare)
    samples, dropped = prepared.samples, prepared.rows - len(prepared.samples)
    reasons = (
        f"{prepared.empty} with an empty or no answer, "
        f"{dropped - prepared.empty} without an answer token in {max_length} tokens"
    )
    if not samples:
        problem = f"must have a row with answer tokens, but all {prepared.rows} are dropped: {reasons}"
        prompts = [encoder.prompt_length(messages) for _, messages in iter_conversations(settings, where)]
        if known := [length for length in prompts if length is not None]:
            problem += f"; the shortest prompt takes {min(known)}"
        hint = "Check the answers, or raise data.max_length."
        raise ActError(ConfigIssue(where, settings.path, problem, hint))
    ability = TokenizedAbility(name, samples, prepared.rows, dropped, cut_samples(samples))
    counts = f"{len(samples)} samples, {ability.tokens} answer tokens, {ability.cut} cut"
    rank_zero_info(f"{name}: {counts}; dropped: {reasons}")
    return ability


def prepare_shards(
    conversations: Iterable[LocatedConversation], encoder: Encoder, folder: Path, num_proc: int | None, title: str
) -> list[PreparedShard]:
    """Write the samples of all conversations into an empty folder, shard by shard.

    By default there is one process for each core, up to 16. Where a set has only one shard, or the system cannot fork,
    this process does the work.

    Returns:
        The shards in the order of the rows, the same for any number of processes.

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
    with tqdm(desc=title, unit=" rows", delay=2.0, leave=False, disable=is_quiet) as bar:
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
