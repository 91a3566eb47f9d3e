"""Conversations to stored samples: in parallel processes, in the order of the rows, with a bar."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from tqdm.auto import tqdm

from act_lightning.data.keeping.storage import save_shard
from act_lightning.data.labeling.labels import Encoder, Sample, has_answers
from act_lightning.data.reading.rows import LocatedConversation
from act_lightning.errors import ActError, Fault

_ROWS = 1024  # of a shard, whatever the number of processes: the same files come out
_TOGETHER = 64  # rows in each step, measured: fewer mix the steps, more leave the caches
_WAITING = 2  # shards for each process: rows are read no faster than they are used
_MOST_PROCESSES = 16  # unless more are asked for: one process reads the rows for all
_QUIET_SECONDS = 2.0
Rows = list[LocatedConversation]


@dataclass(frozen=True)
class PreparedShard:
    """What became of the rows of one shard.

    Attributes:
        file: Name of its file; there is none when it has no samples.
        rows: Number of rows.
        empty: Number of rows with an empty answer or none.
        samples: Number of samples; the rows left over have no answer token within the limit of length.
    """

    file: str
    rows: int
    empty: int
    samples: int


def process_count(num_proc: int | None) -> int:
    """Number of processes that prepare: as many as asked for, or one for each core that is ours, up to 16."""
    if num_proc is not None:
        return num_proc
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_PROCESSES)


def prepare_shards(
    conversations: Iterable[LocatedConversation], encode: Encoder, folder: Path, num_proc: int, title: str
) -> list[PreparedShard]:
    """Write the samples of all conversations into a folder, shard by shard.

    Args:
        conversations: Read while they are used.
        encode: Makes a sample of each.
        folder: An empty folder.
        num_proc: Number of processes; a set of one shard, and a system that cannot fork, make do with this one.
        title: Stands before the bar.

    Returns:
        The shards in the order of the rows, the same for any number of processes.

    Raises:
        ActError: If a row cannot be read or rendered, with its place, or a process was killed.
    """
    shards, quiet = [], rank_zero_only.rank != 0  # type: ignore[attr-defined]  # set at run time
    with tqdm(desc=title, unit=" rows", delay=_QUIET_SECONDS, leave=False, disable=quiet) as bar:
        for shard in _in_order(_chunks(conversations), encode, folder, num_proc):
            shards.append(shard)
            bar.update(shard.rows)
    return shards


def _chunks(conversations: Iterable[LocatedConversation]) -> Iterator[tuple[int, Rows]]:
    rows = iter(conversations)
    return enumerate(iter(lambda: list(islice(rows, _ROWS)), []))


def _in_order(
    chunks: Iterator[tuple[int, Rows]], encode: Encoder, folder: Path, num_proc: int
) -> Iterator[PreparedShard]:
    first = list(islice(chunks, 2))
    chunks = chain(first, chunks)
    if len(first) < 2 or num_proc == 1 or "fork" not in multiprocessing.get_all_start_methods():
        return (_prepare(encode, folder, *chunk) for chunk in chunks)
    return _by_processes(chunks, encode, folder, num_proc)


def _by_processes(
    chunks: Iterable[tuple[int, Rows]], encode: Encoder, folder: Path, num_proc: int
) -> Iterator[PreparedShard]:
    waiting: deque[Future[PreparedShard]] = deque()
    with _pool(encode, folder, num_proc) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_prepare_here, *chunk))
                if len(waiting) > _WAITING * num_proc:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            remedy = "See whether memory ran out; fewer processes need less."
            raise ActError(Fault("data.num_proc", num_proc, "one of these processes was killed", remedy)) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _pool(encode: Encoder, folder: Path, num_proc: int) -> ProcessPoolExecutor:
    """Forked processes, so that a script without a guard around its main part is not run again by each of them."""
    pool = ProcessPoolExecutor(num_proc, multiprocessing.get_context("fork"), _begin, (encode, folder))
    with warnings.catch_warnings():  # Python 3.12 warns of threads, of which these processes use none
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pool.submit(os.getpid)  # starts them all
    return pool


_work: tuple[Encoder, Path] | None = None  # of a process that prepares


def _begin(encode: Encoder, folder: Path) -> None:
    global _work
    _work = encode, folder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork: neither tokenizers' …
    torch.set_num_threads(1)  # … nor torch's


def _prepare_here(number: int, rows: Rows) -> PreparedShard:
    assert _work is not None
    return _prepare(*_work, number, rows)


def _prepare(encode: Encoder, folder: Path, number: int, rows: Rows) -> PreparedShard:
    samples: list[Sample] = []
    for start in range(0, len(rows), _TOGETHER):
        places, conversations = zip(*rows[start : start + _TOGETHER], strict=True)
        samples += [sample for sample in encode.together(conversations, places) if sample is not None]
    file = f"{number:06}.safetensors"
    if samples:
        save_shard(folder / file, samples)
    empty = sum(not has_answers(row.messages) for row in rows)
    return PreparedShard(file, len(rows), empty, len(samples))
