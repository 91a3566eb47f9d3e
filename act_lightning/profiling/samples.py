"""The samples that an ability is measured on, in which chunks they are read, and when to stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PretrainedConfig

from act_lightning.channels import ChannelInventory
from act_lightning.data.batches import MAX_PADDING, collate, shard, token_budget_batches, unbatch
from act_lightning.data.cache import answer_tokens, lengths
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.labels import Sample
from act_lightning.data.packing import Packing, pack, should_pack
from act_lightning.data.tokenized import fingerprint
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.masks import bootstrap_overlaps, ratio_issues
from act_lightning.profiling.pair import ChunkBatch
from act_lightning.transfer.selection import select
from act_lightning.transfer.settings import AbilitySource, TransferSettings

_TENSORS = ("input_ids", "labels", "attention_mask")


class Unit(NamedTuple):
    """The numbers of the samples of a batch, and the chunk that they are of."""

    numbers: list[int]
    chunk: int


@dataclass(frozen=True)
class AbilitySamples:
    """The samples of one ability.

    Attributes:
        samples: Those with answer tokens.
        dropped: Number of rows without answer tokens, or without an answer.
        fingerprint: SHA-256 over all token ids and labels.
        packing: Whether they may be packed; see :func:`~act_lightning.data.packing.should_pack`.
    """

    samples: Sequence[Sample]
    dropped: int
    fingerprint: str
    packing: Packing = "auto"

    @property
    def tokens(self) -> int:
        """Number of answer tokens."""
        return answer_tokens(self.samples)

    def chunk_sizes(self, chunks: int, used: int) -> tuple[list[int], list[int]]:
        """Answer tokens and number of the samples of each chunk, among the first ``used`` samples."""
        tokens, samples = [0] * chunks, [0] * chunks
        for number in range(used):
            tokens[number % chunks] += answer_tokens([self.samples[number]])
            samples[number % chunks] += 1
        return tokens, samples

    def readings(
        self,
        config: PretrainedConfig,
        budget: int,
        rank: int,
        world_size: int,
        chunks: int = 0,
        part: range | None = None,
    ) -> Iterator[ChunkBatch]:
        """One process's share of the samples, in batches of like length.

        Args:
            config: The config of the models that read them.
            budget: Bound on the tokens of a batch, padding included.
            rank: Number of the process.
            world_size: Number of processes.
            chunks: Number of chunks; sample i is of chunk i modulo their number, and no batch has samples of two. 0:
                all are of one.
            part: Numbers of the samples that are read; by default all.
        """
        packed, length_of = should_pack(self.packing, config, by_length=True), lengths(self.samples)
        among = range(len(self.samples)) if part is None else part
        units = []
        for chunk in range(max(1, chunks)):
            its = [number for number in among if not chunks or number % chunks == chunk]
            batches = token_budget_batches([length_of[number] for number in its], budget, MAX_PADDING, packed)
            units += [Unit([its[place] for place in places], chunk) for places in batches]
        for numbers, chunk in shard(units, rank, world_size):
            chosen = [self.samples[number] for number in numbers]
            yield ChunkBatch(pack(chosen) if packed else collate(chosen, 0), chunk)


NO_SAMPLES = AbilitySamples((), 0, "none")
"""What is measured on weights alone is measured on these."""


def ability_samples(source: AbilitySource, ability: str, datamodule: object) -> AbilitySamples:
    """The samples of an ability of ``source``.

    Raises:
        ActError: If the ability is unknown, or no sample has an answer token.
    """
    if ability in source.loaders:
        return _from_batches(ability, source.loaders[ability])
    if isinstance(datamodule, AbilityDataModule) and ability in datamodule.tokenized:
        found = datamodule.tokenized[ability]
        return AbilitySamples(found.samples, found.dropped, found.fingerprint, datamodule.packing)
    known = ", ".join(datamodule.tokenized) if isinstance(datamodule, AbilityDataModule) else "none"
    hint = "Add it there, or give the source's abilities as a dict of batches."
    raise ActError(
        ConfigIssue("profile.sources.abilities", ability, f"must be one of data.abilities: {known or 'none'}", hint)
    )


def _from_batches(ability: str, batches: Iterable[dict[str, Any]]) -> AbilitySamples:
    rows: list[Sample] = []
    for batch in batches:
        _check(batch, ability)
        rows += unbatch(batch)
    kept = [sample for sample in rows if answer_tokens([sample])]
    if not kept:
        problem = f"must hold answer tokens, that is labels other than -100; {len(rows)} rows have none"
        raise ActError(ConfigIssue(f"abilities[{ability!r}]", "batches", problem, "Check how the labels are made."))
    return AbilitySamples(kept, len(rows) - len(kept), fingerprint(kept))


def _check(batch: object, ability: str) -> None:
    """Refuse what is no batch: a sample of a data set, say, or tensors that do not belong together."""
    found = [name for name in _TENSORS if name in batch] if isinstance(batch, Mapping) else []
    shapes = {name: tuple(batch[name].shape) for name in found}  # type: ignore[index]  # only found in a mapping
    if {"input_ids", "labels"} <= set(shapes) and len(set(shapes.values())) == 1 and len(shapes["labels"]) == 2:
        return
    problem = (
        "must be dicts of input_ids, labels and, where there is padding, attention_mask, of one shape [rows, length]"
    )
    hint = "Wrap a data set in a DataLoader; mark with -100 in labels what is no answer token."
    raise ActError(ConfigIssue(f"abilities[{ability!r}]", shapes or type(batch).__name__, problem, hint))


_MOST_CHUNKS = 16
_FIRST = 4  # samples of each chunk before the mask is looked at; then twice as many each time


@dataclass(frozen=True)
class MeasuredScores:
    """What was measured of one ability.

    Attributes:
        scores: float32 ``[channels]``.
        chunks: Those of each chunk, float32 ``[chunks, channels]``; ``None`` where none are kept.
        used: How many samples were read.
        overlap: Mean bootstrap overlap of the mask at the end; ``None`` where nothing could be stopped.
    """

    scores: Tensor
    chunks: Tensor | None = None
    used: int = 0
    overlap: float | None = None


@dataclass(frozen=True)
class Sampling:
    """In which chunks samples are read, and when to stop.

    Attributes:
        settings: How a transfer will select.
        chunks: Number of chunks that scores are kept of, or 0.
        threshold: The bootstrap overlap of its mask at which an ability is stopped; ``None``: all samples are read.
    """

    settings: TransferSettings
    chunks: int = 0
    threshold: float | None = None

    @property
    def kept(self) -> int:
        """Number of chunks that are kept: where it is to be known when to stop, 16 unless another number is given."""
        return self.chunks or (_MOST_CHUNKS if self.threshold is not None else 0)

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the settings."""
        found = []
        if self.chunks and not 2 <= self.chunks <= _MOST_CHUNKS:
            problem = f"must be 0, or between 2 and {_MOST_CHUNKS}"
            found.append(ConfigIssue("profile.chunks", self.chunks, problem, f"Try {_MOST_CHUNKS}."))
        if self.threshold is not None and ratio_issues(self.threshold):
            found.append(ConfigIssue("profile.stop_when_stable", self.threshold, "must lie in (0, 1]", "Try 0.98."))
        return found

    def sample_issues(self, label: str, count: int) -> list[ConfigIssue]:
        """Too few samples for that many chunks."""
        if count >= self.kept:
            return []
        problem = f"must not be more than the {count} samples of {label}"
        return [
            ConfigIssue("profile.chunks", self.kept, problem, "Lower it, or read all samples (stop_when_stable: null).")
        ]

    def parts(self, count: int) -> Iterator[range]:
        """The numbers of the samples that are read before the mask is looked at again; all at once if it never is."""
        start, end = 0, count if self.threshold is None else self.kept * _FIRST
        while start < count:
            yield range(start, min(end, count))
            start, end = min(end, count), 2 * end

    def is_stable(self, overlap: float | None) -> bool:
        """Whether an ability with that overlap need not read on."""
        return self.threshold is not None and overlap is not None and overlap >= self.threshold

    def judged(
        self, source: AbilitySource, samples: AbilitySamples, channels: ChannelInventory, found: MeasuredScores
    ) -> MeasuredScores:
        """What was found, with how stable the mask is that a transfer would make of it, where that is asked for.

        Args:
            source: The source, which may have a ratio of its own.
            samples: The samples that were read.
            channels: The channels of the target.
            found: Scores of all samples so far, and of each chunk.
        """
        if self.threshold is None or found.chunks is None:
            return found
        tokens, _ = samples.chunk_sizes(len(found.chunks), found.used)
        overlaps = bootstrap_overlaps(found.chunks, tokens, partial(self.mask, source, channels))
        return replace(found, overlap=sum(overlaps) / len(overlaps))

    def mask(self, source: AbilitySource, channels: ChannelInventory, scores: Tensor) -> Tensor:
        """The mask that a transfer would make of scores, ``[channels]`` both."""
        settings = self.settings if self.settings.needs_scores else replace(self.settings, selection="activation")
        ratio = settings.ratio if source.ratio is None else source.ratio
        return select(channels, {source.label: scores}, ratio, settings, ())[source.label]

    def planned(self, source: AbilitySource) -> dict[str, Any]:
        """What a record says of when to stop; empty where all samples are read."""
        if self.threshold is None:
            return {}
        settings = self.settings
        ratio = settings.ratio if source.ratio is None else source.ratio
        masks = f"{settings.selection_name}, {settings.share} {float(ratio):g}, {settings.scope}"
        masks += f" without {', '.join(settings.exclude)}" if settings.exclude else ""
        return {"threshold": self.threshold, "masks": masks}
