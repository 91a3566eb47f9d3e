"""Micro-batches: composed once, whatever the number of processes, then dealt whole to them."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Generic, TypeVar

import lightning as L
from torch.utils.data import DistributedSampler

from act_lightning.data.batches import Batch, collate, shard
from act_lightning.data.labels import Sample
from act_lightning.data.packing import pack
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue

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


def collate_micro_batch(samples: Sequence[Sample], pad_id: int, packed: bool, chosen: MicroBatch) -> Batch:
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


class FitProgress:
    """The progress of a Trainer's epoch, in micro-batches of each process.

    A checkpoint holds the weights of the last update, but no gradients: what was added up since then must be given
    again, and a micro-batch whose step an exception broke off as well.

    Args:
        trainer: A Trainer that fits.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self.trainer = trainer

    def settled(self, given: int) -> int:
        """How many of the micro-batches given so far have gone into an update.

        Args:
            given: Number of micro-batches given since the epoch began or was resumed.
        """
        counts: Any = self.trainer.fit_loop.epoch_loop.batch_progress  # whose type leaves out what it counts
        broken_off = int(counts.current.ready - counts.current.processed)
        ended = counts.is_last_batch and not broken_off  # the epoch, with an update
        pending = 0 if ended else int(counts.current.processed) % self.trainer.accumulate_grad_batches
        return max(0, given - broken_off - pending)

    def resume(self, behind: int) -> None:
        """Make Lightning's count agree: with an update that begins anew, and with another number of processes.

        Args:
            behind: How many of the epoch's micro-batches need not be given again.
        """
        counts: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        uncounted = counts.total.processed - counts.total.completed  # which Lightning adds when it resumes
        for name in ("ready", "started", "processed"):
            setattr(counts.current, name, behind)
        counts.current.completed = behind - uncounted


class TrainingLoader(MicroBatchLoader[Batch]):
    """Collated micro-batches of samples, in the order of a sampler, which Lightning finds and tells the epoch.

    Its state counts samples, on all processes together, so that a fit may go on with another number of them.

    Args:
        samples: What the sampler's indices point at.
        sampler: Composes the micro-batches.
        pad_id: Token id that fills up ``input_ids``.
        packed: Whether the samples of a micro-batch are packed into one row, not padded.
        progress: Of the fit that uses this loader; without one, what was given is done.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        sampler: MicroBatchSampler,
        pad_id: int,
        packed: bool = False,
        progress: FitProgress | None = None,
    ) -> None:
        super().__init__(sampler, partial(collate_micro_batch, samples, pad_id, packed))
        self.sampler = sampler
        self.progress = progress
        self._epoch, self._start, self._given = 0, 0, 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one epoch, or of what is left of it."""
        for given, micro_batch in enumerate(self.sampler, start=1):
            self._epoch, self._start, self._given = self.sampler.epoch, self.sampler.taken, given
            yield self.collate(micro_batch)

    def samples_in(self, number: int) -> tuple[int, ...]:
        """Indices of the samples in one of this process's micro-batches of the epoch set last.

        Args:
            number: Counted from the epoch's first, whether or not it was before this fit was resumed.
        """
        sampler = self.sampler
        left = shard_evenly(sampler.composition(sampler.taken), sampler.rank, sampler.num_replicas)
        return left[number - (len(sampler) - len(left))].rows

    def state_dict(self) -> dict[str, Any]:
        """Epoch, the samples that all processes have taken in it, and which order they were taken from."""
        sampler = self.sampler
        settled = self.progress.settled(self._given) if self.progress else self._given
        taken = self._start + settled * sampler.batch_size * sampler.num_replicas
        return {
            "epoch": self._epoch,
            "taken": min(taken, sampler.samples),
            "order": sampler.order_digest(self._epoch),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sample after those that were taken.

        Args:
            state: From :meth:`state_dict`, of any number of processes.

        Raises:
            ActError: If the rest of an epoch would not be what it was, as with other data or another seed.
        """
        sampler, epoch, taken = self.sampler, int(state["epoch"]), int(state["taken"])
        left = max(0, sampler.samples - taken)
        if taken and left and state["order"] != sampler.order_digest(epoch):
            problem = "must give the samples in the order of the epoch that was broken off"
            hint = "Resume with the same data, seed_everything, data.shuffle and data.packing; or start anew."
            raise ActError(ConfigIssue("ckpt_path", f"epoch {epoch}, after {taken} samples", problem, hint))
        sampler.begun = self._epoch, self._start = epoch, taken
        self._given = 0
        if self.progress:
            self.progress.resume(len(sampler) - -(-left // (sampler.batch_size * sampler.num_replicas)))
