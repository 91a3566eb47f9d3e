"""Tokenized sets on disk: prepared by several processes, kept under a fingerprint, trusted only when whole."""

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
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, overload

import jinja2
import tokenizers
import torch
import transformers
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from act_lightning.checkpoints.files import atomic_folder, check_writable, wrap_os_errors
from act_lightning.data.conversations import LocatedConversation
from act_lightning.data.labels import Encoder, Sample, has_answers
from act_lightning.data.templates import Template
from act_lightning.defaults import IGNORED, cache_folder
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

_DECIDING = (".py", ".jinja")


def cache_key(rows: str, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """SHA-256 over all that decides the samples, our own code included: change any of it, and a set is prepared anew.

    Args:
        rows: Fingerprint of the rows.
        template: How a conversation becomes text.
        tokenizer: Its type, and its files as it would save them.
        max_length: Longer sequences are cut at the end.

    Returns:
        64 hexadecimal digits.
    """
    versions = [module.__version__ for module in (transformers, tokenizers, jinja2)]
    parts = [rows, _template_text(template), _tokenizer_digest(tokenizer), max_length, versions, _code_digest()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _template_text(template: Template) -> list[str]:
    told = {name: value for name, value in vars(template).items() if isinstance(value, (str, int, float, type(None)))}
    return [type(template).__name__, json.dumps(told, sort_keys=True)]


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return [type(tokenizer).__name__, _digest(Path(folder).rglob("*"))]


def _code_digest() -> str:
    """Of this package's sources: labels, shapes, templates and the format of the files are all decided here."""
    return _digest(path for path in Path(__file__).parent.rglob("*") if path.suffix in _DECIDING)


def _digest(paths: Iterable[Path]) -> str:
    files = [(path.name, file_digest(path)) for path in sorted(paths) if path.is_file()]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_SHARD_ROWS = 1024  # of a shard, whatever the number of processes: the same files come out
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
    return enumerate(iter(lambda: list(islice(rows, _SHARD_ROWS)), []))


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
            hint = "See whether memory ran out; fewer processes need less."
            raise ActError(ConfigIssue("data.num_proc", num_proc, "one of these processes was killed", hint)) from error
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


_MANIFEST = "manifest.json"
_UNKNOWN = "uncached-"


@dataclass(frozen=True)
class PreparedSet:
    """A prepared set.

    Attributes:
        samples: Its samples, read from disk when they are asked for.
        rows: Number of rows that they were made from.
        empty: Number of rows with an empty answer or none.
    """

    samples: StoredSamples
    rows: int
    empty: int


def cache_root(setting: str | None) -> Path:
    """The folder of all prepared sets: the setting, ``$ACT_LIGHTNING_CACHE/data`` or ``~/.cache/act_lightning/data``.

    Args:
        setting: ``data.cache_dir``.
    """
    return cache_folder("data") if setting is None else Path(setting).expanduser()


def load_or_prepare(root: Path, key: str | None, prepare: Callable[[Path], list[PreparedShard]]) -> PreparedSet:
    """The prepared set of a key: as it lies there if every byte is as it was written, or else prepared again.

    Of several processes that ask at once, one prepares and the others wait.

    Args:
        root: The folder of all prepared sets; it need not be writable if the set lies there.
        key: The fingerprint; a set without any is prepared for this process alone, and removed when it ends.
        prepare: Writes shards into the folder it is given.

    Raises:
        ActError: If the folder cannot be written, or preparing fails.
    """
    folder = root / (key or f"{_UNKNOWN}{os.getpid()}-{secrets.token_hex(4)}")
    found = _trusted(folder)
    if found is not None:
        return found
    raise_if_any(check_writable(root, "data.cache_dir"))
    with wrap_os_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    if key is None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return _prepared_anew(folder, prepare)
    with FileLock(root / f".{key}.lock"):
        return _trusted(folder) or _prepared_anew(folder, prepare)


def _prepared_anew(folder: Path, prepare: Callable[[Path], list[PreparedShard]]) -> PreparedSet:
    with atomic_folder(folder) as unfinished:
        shards = prepare(unfinished)
        digests = {one.file: file_digest(unfinished / one.file) for one in shards if one.samples}
        manifest = {"shards": [asdict(one) for one in shards], "digests": digests}
        (unfinished / _MANIFEST).write_text(json.dumps(manifest | {"digest": _manifest_digest(manifest)}))
    return _opened(folder, shards)


def _trusted(folder: Path) -> PreparedSet | None:
    """The set in a folder, or ``None`` if there is none, or one that is damaged."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        intact = manifest.pop("digest") == _manifest_digest(manifest)
        intact = intact and all(file_digest(folder / file) == known for file, known in manifest["digests"].items())
    except (OSError, ValueError, LookupError, AttributeError):
        intact = False
    if not intact:
        rank_zero_info(f"the prepared set in {folder} is damaged: it is prepared again")
        return None
    return _opened(folder, [PreparedShard(**entry) for entry in manifest["shards"]])


def _manifest_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _opened(folder: Path, shards: list[PreparedShard]) -> PreparedSet:
    filled = [one for one in shards if one.samples]
    samples = StoredSamples([folder / one.file for one in filled], [one.samples for one in filled])
    return PreparedSet(samples, sum(one.rows for one in shards), sum(one.empty for one in shards))


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
