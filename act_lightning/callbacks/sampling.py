"""How many of an ability's samples are read, in which chunks, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from act_lightning.callbacks.samples import AbilitySamples
from act_lightning.callbacks.sources import AbilitySource
from act_lightning.channels import ChannelInventory
from act_lightning.errors import Fault
from act_lightning.masks import ratio_faults
from act_lightning.stability import bootstrap_overlaps
from act_lightning.transfer import TransferSettings, select

_MOST_CHUNKS = 16
_FIRST = 4  # samples of each chunk before the mask is looked at; then twice as many each time


@dataclass(frozen=True)
class Measured:
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

    def faults(self) -> list[Fault]:
        """What is wrong with the settings."""
        found = []
        if self.chunks and not 2 <= self.chunks <= _MOST_CHUNKS:
            rule = f"must be 0, or between 2 and {_MOST_CHUNKS}"
            found.append(Fault("profile.chunks", self.chunks, rule, f"Try {_MOST_CHUNKS}."))
        if self.threshold is not None and ratio_faults(self.threshold):
            found.append(Fault("profile.stop_when_stable", self.threshold, "must lie in (0, 1]", "Try 0.98."))
        return found

    def sample_faults(self, label: str, count: int) -> list[Fault]:
        """Too few samples for that many chunks."""
        if count >= self.kept:
            return []
        rule = f"must not be more than the {count} samples of {label}"
        return [Fault("profile.chunks", self.kept, rule, "Lower it, or read all samples (stop_when_stable: null).")]

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
        self, source: AbilitySource, samples: AbilitySamples, channels: ChannelInventory, found: Measured
    ) -> Measured:
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
