"""The samples that an ability is measured on, in which chunks they are read, and when to stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.data.batches import (
    MAX_PADDING,
    Packing,
    collate,
    pack,
    should_pack,
    token_budget_batches,
    unbatch,
)
from act_lightning.data.cache import answer_tokens, lengths
from act_lightning.data.labels import Sample, fingerprint
from act_lightning.data.section import DataSection
from act_lightning.defaults import EVERY_MODULE
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.masks import bootstrap_overlaps, ratio_issues
from act_lightning.transfer.selection import select
from act_lightning.transfer.settings import AbilitySource, TransferSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from act_lightning.profiling.pair import ChunkBatch

_TENSORS = ("input_ids", "labels", "attention_mask")
_MOST_CHUNKS = 16
_FIRST_ROUND = 4  # samples of each chunk before the mask is looked at; then twice as many each time


@dataclass(frozen=True)
class AbilitySamples:
    """The samples of one ability.

    Attributes:
        samples: Those with answer tokens.
        dropped: Number of rows without answer tokens, or without an answer.
        fingerprint: SHA-256 over all token ids and labels.
        packing: Whether they may be packed; see :func:`~act_lightning.data.batches.should_pack`.
    """

    samples: Sequence[Sample]
    dropped: int
    fingerprint: str
    packing: Packing = "auto"

    def chunk_sizes(self, chunks: int, used: int) -> tuple[list[int], list[int]]:
        """Answer tokens and number of the samples of each chunk, among the first ``used`` samples."""
        tokens, samples = [0] * chunks, [0] * chunks
        for number in range(used):
            tokens[number % chunks] += answer_tokens([self.samples[number]])
            samples[number % chunks] += 1
        return tokens, samples

    def batches(
        self,
        config: PretrainedConfig,
        budget: int,
        rank: int,
        world_size: int,
        chunks: int = 0,
        numbers: range | None = None,
    ) -> Iterator[ChunkBatch]:
        """One process's share of the samples, in batches of samples of similar length.

        Args:
            config: The config of the models that read them.
            budget: Bound on the tokens of a batch, padding included.
            rank: Number of the process, among ``world_size``.
            world_size: Number of processes.
            chunks: Number of chunks, or 0 for one of all. Sample i belongs to chunk i modulo their number, and a batch
                to one chunk.
            numbers: Which samples are read; by default all.
        """
        from act_lightning.profiling.pair import ChunkBatch  # which imports models

        packed, length_of = should_pack(self.packing, config, by_length=True), lengths(self.samples)
        numbers = range(len(self.samples)) if numbers is None else numbers
        units: list[tuple[list[int], int]] = []
        for chunk in range(max(1, chunks)):
            in_chunk = [number for number in numbers if not chunks or number % chunks == chunk]
            batches = token_budget_batches([length_of[number] for number in in_chunk], budget, MAX_PADDING, packed)
            units += [([in_chunk[index] for index in batch], chunk) for batch in batches]
        for batch, chunk in units[rank::world_size]:
            samples = [self.samples[number] for number in batch]
            yield ChunkBatch(pack(samples) if packed else collate(samples, 0), chunk)


NO_SAMPLES = AbilitySamples((), 0, "none")
"""The samples of a scorer that compares weights only."""


def ability_samples(source: AbilitySource, ability: str, datamodule: object) -> AbilitySamples:
    """The samples of an ability of ``source``: its own batches, or else those of the datamodule.

    Raises:
        ActError: If the ability is unknown, its batches are malformed, or no sample has an answer token.
    """
    if ability in source.loaders:
        rows: list[Sample] = []
        for batch in source.loaders[ability]:
            _check_batch(batch, ability)
            rows += unbatch(batch)
        samples = [sample for sample in rows if answer_tokens([sample])]
        if not samples:
            problem = f"must hold answer tokens, that is labels other than -100; {len(rows)} rows have none"
            raise ActError(ConfigIssue(f"abilities[{ability!r}]", "batches", problem, "Check how the labels are made."))
        return AbilitySamples(samples, len(rows) - len(samples), fingerprint(samples))
    if isinstance(datamodule, DataSection) and ability in datamodule.tokenized:
        tokenized = datamodule.tokenized[ability]
        return AbilitySamples(tokenized.samples, tokenized.dropped, tokenized.fingerprint, datamodule.packing)
    known = ", ".join(datamodule.tokenized) if isinstance(datamodule, DataSection) else "none"
    problem = f"must be one of data.abilities: {known or 'none'}"
    hint = "Add it there, or give the source's abilities as a dict of batches."
    raise ActError(ConfigIssue("profile.sources.abilities", ability, problem, hint))


def _check_batch(batch: object, ability: str) -> None:
    """Refuse anything but a batch, such as a sample of a data set, or tensors of different shapes."""
    names = [name for name in _TENSORS if name in batch] if isinstance(batch, Mapping) else []
    shapes = {name: tuple(batch[name].shape) for name in names}  # type: ignore[index]  # names come from a mapping
    if {"input_ids", "labels"} <= set(shapes) and len(set(shapes.values())) == 1 and len(shapes["labels"]) == 2:
        return
    problem = (
        "must be dicts of input_ids, labels and, where there is padding, attention_mask, of one shape [rows, length]"
    )
    hint = "Wrap a data set in a DataLoader; label with -100 every token that is not an answer token."
    raise ActError(ConfigIssue(f"abilities[{ability!r}]", shapes or type(batch).__name__, problem, hint))


@dataclass(frozen=True)
class MeasuredScores:
    """The scores of one ability.

    Attributes:
        scores: float32 ``[channels]``.
        chunks: Those of each chunk, float32 ``[chunks, channels]``; ``None`` where none are kept.
        usage: How often experts were used; see :func:`~act_lightning.scores.write_scores`.
        used: How many samples were read.
        overlap: Mean bootstrap overlap of the mask; ``None`` unless reading may stop early.
        is_stable: Whether that overlap has reached the threshold at which reading stops.
    """

    scores: Tensor
    chunks: Tensor | None = None
    used: int = 0
    overlap: float | None = None
    is_stable: bool = False
    usage: Mapping[str, Tensor] = field(default_factory=dict)


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
    def chunk_count(self) -> int:
        """Number of chunks that are kept: as set, or 16 where the threshold needs them."""
        return self.chunks or (_MOST_CHUNKS if self.threshold is not None else 0)

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the settings."""
        issues = []
        if self.chunks and not 2 <= self.chunks <= _MOST_CHUNKS:
            problem = f"must be 0, or between 2 and {_MOST_CHUNKS}"
            issues.append(ConfigIssue("profile.chunks", self.chunks, problem, f"Try {_MOST_CHUNKS}."))
        if self.threshold is not None and ratio_issues(self.threshold):
            issues.append(ConfigIssue("profile.stop_when_stable", self.threshold, "must lie in (0, 1]", "Try 0.98."))
        return issues

    def rounds(self, count: int) -> Iterator[range]:
        """The samples to read before each look at the mask: 4 of each chunk, then twice as many; else all at once."""
        start, end = 0, count if self.threshold is None else self.chunk_count * _FIRST_ROUND
        while start < count:
            yield range(start, min(end, count))
            start, end = min(end, count), 2 * end

    def with_overlap(
        self, source: AbilitySource, samples: AbilitySamples, channels: ChannelInventory, measured: MeasuredScores
    ) -> MeasuredScores:
        """The same scores with the bootstrap overlap of their mask, if there is a threshold to compare it with."""
        if self.threshold is None or measured.chunks is None:
            return measured
        tokens, _ = samples.chunk_sizes(len(measured.chunks), measured.used)
        overlaps = bootstrap_overlaps(measured.chunks, tokens, partial(self.mask, source, channels))
        overlap = sum(overlaps) / len(overlaps)
        return replace(measured, overlap=overlap, is_stable=overlap >= self.threshold)

    def mask(self, source: AbilitySource, channels: ChannelInventory, scores: Tensor) -> Tensor:
        """The mask that a transfer from ``source`` would make of scores, ``[channels]`` both."""
        settings = self.settings if self.settings.scorer else replace(self.settings, selection="activation")
        ratio = settings.ratio if source.ratio is None else source.ratio
        return select(channels, {source.label: scores}, ratio, settings, ())[source.label]

    def record(self, source: AbilitySource) -> dict[str, Any]:
        """The ``stability`` entry of a score record: threshold and masks; empty where all samples are read."""
        if self.threshold is None:
            return {}
        settings = self.settings
        ratio = settings.ratio if source.ratio is None else source.ratio
        masks = f"{settings.selection}, {settings.share} {float(ratio):g}, {settings.scope}"
        masks += f" of {', '.join(settings.include)}" if tuple(settings.include) != EVERY_MODULE else ""
        masks += f" without {', '.join(settings.exclude)}" if settings.exclude else ""
        return {"threshold": self.threshold, "masks": masks}
