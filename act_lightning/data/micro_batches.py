"""Micro-batches: composed once, whatever the number of processes, then dealt whole to them."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from torch.utils.data import DistributedSampler

from act_lightning.data.batches import Batch, collate, shard
from act_lightning.data.labels import Sample
from act_lightning.data.packing import pack
from act_lightning.defaults import IGNORED

Collated = TypeVar("Collated")
_SORTED_TOGETHER = 400  # micro-batches: enough that lengths differ little in one, few enough to mix large sets anew


@dataclass(frozen=True)
class MicroBatch:
    """Which samples are processed together.

    Attributes:
        rows: Their indices.
        counts: Whether they count; a process that has run out takes part with samples that do not.
    """

    rows: tuple[int, ...]
    counts: bool = True


def shard_evenly(batches: Sequence[Sequence[int]], rank: int, world_size: int) -> list[MicroBatch]:
    """The batches of one process, filled up so that all have the same number.

    Args:
        batches: Indices of the samples in each batch.
        rank: Number of the process.
        world_size: Number of processes.

    >>> shard_evenly([[4, 2], [0, 1], [3]], rank=1, world_size=2)
    [MicroBatch(rows=(0, 1), counts=True), MicroBatch(rows=(3,), counts=False)]
    """
    dealt = [MicroBatch(tuple(rows)) for rows in shard(batches, rank, world_size)]
    missing = -(-len(batches) // world_size) - len(dealt)
    return dealt + [MicroBatch(tuple(batches[-1][:1]), counts=False) for _ in range(missing)]


def collate_chosen(samples: Sequence[Sample], pad_id: int, packed: bool, chosen: MicroBatch) -> Batch:
    """One micro-batch, packed or padded on the right; without any answer token if it does not count.

    The first token of a packed sample is no answer token: nothing but another sample stands before it.

    Args:
        samples: What the indices in ``chosen`` point at.
        pad_id: Token id that fills up ``input_ids``.
        packed: Whether samples are packed into one row.
        chosen: The micro-batch.
    """
    rows = [samples[row] for row in chosen.rows]
    batch = pack(rows) if packed else collate(rows, pad_id)
    if packed:
        batch["labels"][batch["position_ids"] == 0] = IGNORED
    if not chosen.counts:
        batch["labels"].fill_(IGNORED)
    return batch


class MicroBatchSampler(DistributedSampler[MicroBatch]):
    """The micro-batches of one process in one epoch.

    All samples are shuffled by (seed, epoch) and cut into micro-batches in this order; the last may be smaller. A
    :class:`~torch.utils.data.DistributedSampler` by type, so that Lightning leaves it in place and tells it the epoch.

    Args:
        samples: Number of samples.
        batch_size: Samples in a micro-batch.
        shuffle: Whether to shuffle.
        seed: With the epoch, decides the order.
        rank: Number of the process.
        world_size: Number of processes.
        lengths: Tokens of each sample, to compose micro-batches of samples of like length, which waste little when
            they are padded; the micro-batches themselves are shuffled.

    Attributes:
        begun: Epoch and number of samples that were taken in it, by all processes, before this sampler was made.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        lengths: Sequence[int] | None = None,
    ) -> None:
        super().__init__(range(samples), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.samples = samples
        self.batch_size = batch_size
        self.lengths = lengths
        self.begun = (0, 0)

    def __iter__(self) -> Iterator[MicroBatch]:
        """This process's micro-batches of the epoch set last, composed when the first is asked for.

        No sooner: where a fit resumes, Lightning makes the iterator before it tells the epoch.
        """
        yield from shard_evenly(self.composition(self.taken), self.rank, self.num_replicas)

    def __len__(self) -> int:
        """Number of micro-batches of a whole epoch, the same on every process."""
        return -(-self.samples // (self.batch_size * self.num_replicas))

    @property
    def taken(self) -> int:
        """Number of samples that were taken in the epoch set last before this sampler was made."""
        epoch, taken = self.begun
        return taken if epoch == self.epoch else 0

    def composition(self, taken: int = 0) -> list[list[int]]:
        """The micro-batches of all processes in the epoch set last, as indices of samples.

        Args:
            taken: Leave out so many samples, the first of the epoch.
        """
        order = self.order(self.epoch)[taken:]
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def order(self, epoch: int) -> list[int]:
        """All samples in the order of an epoch."""
        order = list(range(self.samples))
        draw = random.Random(f"{self.seed} {epoch}")
        if self.shuffle:
            draw.shuffle(order)
        return order if self.lengths is None else self._by_length(order, self.lengths, draw)

    def _by_length(self, order: list[int], lengths: Sequence[int], draw: random.Random) -> list[int]:
        """Sorted by length in parts, cut, and the full micro-batches shuffled."""
        size, part = self.batch_size, self.batch_size * _SORTED_TOGETHER
        parts = [order[start : start + part] for start in range(0, len(order), part)]
        order = [index for part in parts for index in sorted(part, key=lambda index: lengths[index])]
        full = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        if self.shuffle:
            draw.shuffle(full)
        return [*chain(*full), *order[len(full) * size :]]

    def order_digest(self, epoch: int) -> str:
        """Tells whether another sampler gives the samples of an epoch in the same order."""
        return hashlib.sha256(array("q", self.order(epoch)).tobytes()).hexdigest()[:16]


class MicroBatchLoader(Generic[Collated]):
    """Collated micro-batches, in order.

    Not a :class:`~torch.utils.data.DataLoader`: to put a few rows together is no work for processes of its own, about
    whose number Lightning would warn, and whose samplers some strategies (DeepSpeed) take apart.

    Args:
        micro_batches: What to collate; a sampler gives another order in every epoch.
        collate: Makes a batch of it.
    """

    def __init__(
        self, micro_batches: MicroBatchSampler | Sequence[MicroBatch], collate: Callable[[MicroBatch], Collated]
    ) -> None:
        self.micro_batches = micro_batches
        self.collate = collate

    def __iter__(self) -> Iterator[Collated]:
        """The batches of one epoch."""
        return map(self.collate, iter(self.micro_batches))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.micro_batches)
