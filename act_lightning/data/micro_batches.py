"""Micro-batches: composed once, whatever the number of processes, then dealt whole to them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from torch.utils.data import DistributedSampler

from act_lightning.data.batches import Batch, collate, deal
from act_lightning.data.labels import IGNORED, Sample

Collated = TypeVar("Collated")


@dataclass(frozen=True)
class MicroBatch:
    """Which samples are processed together.

    Attributes:
        rows: Their indices.
        counts: Whether they count; a process that has run out takes part with samples that do not.
    """

    rows: tuple[int, ...]
    counts: bool = True


def deal_evenly(batches: Sequence[Sequence[int]], rank: int, world_size: int) -> list[MicroBatch]:
    """The batches of one process, filled up so that all have the same number.

    Args:
        batches: Indices of the samples in each batch, one batch or more.
        rank: Number of the process.
        world_size: Number of processes.

    >>> deal_evenly([[4, 2], [0, 1], [3]], rank=1, world_size=2)
    [MicroBatch(rows=(0, 1), counts=True), MicroBatch(rows=(3,), counts=False)]
    """
    dealt = [MicroBatch(tuple(rows)) for rows in deal(batches, rank, world_size)]
    rounds = -(-len(batches) // world_size)
    spare = MicroBatch(tuple(batches[-1][:1]), counts=False)
    return dealt + [spare] * (rounds - len(dealt))


def collate_chosen(samples: Sequence[Sample], pad_id: int, chosen: MicroBatch) -> Batch:
    """One micro-batch, padded on the right; without any answer token if it does not count.

    Args:
        samples: What the indices in ``chosen`` point at.
        pad_id: Token id that fills up ``input_ids``.
        chosen: The micro-batch.
    """
    batch = collate([samples[row] for row in chosen.rows], pad_id)
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
    """

    def __init__(
        self, samples: int, batch_size: int = 1, shuffle: bool = True, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(range(samples), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.samples = samples
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[MicroBatch]:
        """This process's micro-batches of the epoch set last, composed when the first is asked for.

        No sooner: where a fit resumes, Lightning makes the iterator before it tells the epoch.
        """
        yield from deal_evenly(self.composition(), self.rank, self.num_replicas)

    def __len__(self) -> int:
        """Number of micro-batches, the same on every process."""
        return -(-self.samples // (self.batch_size * self.num_replicas))

    def composition(self) -> list[list[int]]:
        """The micro-batches of all processes in the epoch set last, as indices of samples."""
        order = list(range(self.samples))
        if self.shuffle:
            random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        return [order[start : start + self.batch_size] for start in range(0, self.samples, self.batch_size)]


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


class TrainingLoader(MicroBatchLoader[Batch]):
    """Collated micro-batches of samples, in the order of a sampler, which Lightning finds and tells the epoch.

    Args:
        samples: What the sampler's indices point at.
        sampler: Composes the micro-batches.
        pad_id: Token id that fills up ``input_ids``.
    """

    def __init__(self, samples: Sequence[Sample], sampler: MicroBatchSampler, pad_id: int) -> None:
        super().__init__(sampler, partial(collate_chosen, samples, pad_id))
        self.sampler = sampler
