"""Micro-batches: composed once for all processes, dealt whole to them, and resumed where a fit was interrupted."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch.utils.data import DistributedSampler

from act_lightning.data.batches import Batch, collate, pack
from act_lightning.data.labels import Sample
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    import lightning as L

Collated = TypeVar("Collated")
_SORTED_MICRO_BATCHES = 400  # enough that lengths differ little in one, few enough to mix large sets anew


@dataclass(frozen=True)
class MicroBatch:
    """Samples that are processed at once.

    Attributes:
        rows: Their indices.
        counts: Whether they count; a process that has run out takes part with samples that do not.
    """

    rows: tuple[int, ...]
    counts: bool = True


def shard_evenly(batches: Sequence[Sequence[int]], rank: int, world_size: int) -> list[MicroBatch]:
    """The batches of one process, filled up so that all processes have the same number.

    >>> shard_evenly([[4, 2], [0, 1], [3]], rank=1, world_size=2)
    [MicroBatch(rows=(0, 1), counts=True), MicroBatch(rows=(3,), counts=False)]
    """
    part = [MicroBatch(tuple(rows)) for rows in batches[rank::world_size]]
    missing = -(-len(batches) // world_size) - len(part)
    return part + [MicroBatch(tuple(batches[-1][:1]), counts=False) for _ in range(missing)]


def join_micro_batches(micro_batches: Sequence[MicroBatch], number: int = 16) -> list[MicroBatch]:
    """Those of one process, joined by ``number``, for a model that divides them itself; no other process is in step.

    >>> join_micro_batches([MicroBatch((4, 2)), MicroBatch((3,)), MicroBatch((3,), counts=False)], number=2)
    [MicroBatch(rows=(4, 2, 3), counts=True), MicroBatch(rows=(3,), counts=False)]
    """
    joined = []
    for start in range(0, len(micro_batches), number):
        group = micro_batches[start : start + number]
        counted = [micro_batch.rows for micro_batch in group if micro_batch.counts]
        joined.append(MicroBatch(tuple(chain(*counted))) if counted else group[0])
    return joined


def collate_micro_batch(samples: Sequence[Sample], pad_id: int, packed: bool, micro_batch: MicroBatch) -> Batch:
    """One micro-batch, packed or padded on the right; without answer tokens if it does not count.

    The first token of a packed sample is no answer token: only another sample precedes it.
    """
    rows = [samples[row] for row in micro_batch.rows]
    batch = pack(rows) if packed else collate(rows, pad_id)
    if packed:
        batch["labels"][batch["position_ids"] == 0] = IGNORED
    if not micro_batch.counts:
        batch["labels"].fill_(IGNORED)
    return batch


class MicroBatchSampler(DistributedSampler[MicroBatch]):
    """The micro-batches of one process in one epoch.

    All samples are shuffled by (seed, epoch) and cut into micro-batches in this order; the last may be smaller. It
    subclasses :class:`~torch.utils.data.DistributedSampler` so that Lightning does not replace it and sets its epoch.
    With ``lengths``, micro-batches hold samples of similar length, which waste little when they are padded, and are
    shuffled themselves.

    Attributes:
        resumed: Epoch in which the fit was interrupted, and number of its samples that all processes had consumed.
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
        self.resumed = (0, 0)

    def __iter__(self) -> Iterator[MicroBatch]:
        """This process's remaining micro-batches of the current epoch.

        They are composed late, because Lightning creates the iterator before it sets the epoch when a fit resumes.
        """
        yield from shard_evenly(self.composition(), self.rank, self.num_replicas)

    def __len__(self) -> int:
        """Number of micro-batches of a whole epoch, the same on every process."""
        return -(-self.samples // (self.batch_size * self.num_replicas))

    @property
    def consumed(self) -> int:
        """Number of samples of the current epoch that were consumed before the fit was interrupted."""
        return self.resumed[1] if self.resumed[0] == self.epoch else 0

    def composition(self) -> list[list[int]]:
        """The remaining micro-batches of all processes in the current epoch, as indices of samples."""
        order = self.order(self.epoch)[self.consumed :]
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def order(self, epoch: int) -> list[int]:
        """All samples in the order of an epoch."""
        order = list(range(self.samples))
        rng = random.Random(f"{self.seed} {epoch}")
        if self.shuffle:
            rng.shuffle(order)
        if (lengths := self.lengths) is None:
            return order
        # Sort by length within parts of the epoch, cut into micro-batches, and shuffle the full ones.
        size, part = self.batch_size, self.batch_size * _SORTED_MICRO_BATCHES
        parts = [order[start : start + part] for start in range(0, len(order), part)]
        order = [index for part_order in parts for index in sorted(part_order, key=lambda index: lengths[index])]
        full = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        if self.shuffle:
            rng.shuffle(full)
        return [*chain(*full), *order[len(full) * size :]]

    def order_digest(self, epoch: int) -> str:
        """Equal for two samplers if they give the samples of an epoch in the same order."""
        return hashlib.sha256(array("q", self.order(epoch)).tobytes()).hexdigest()[:16]


@dataclass(eq=False)
class MicroBatchLoader(Generic[Collated]):
    """Collated micro-batches, in order.

    Not a :class:`~torch.utils.data.DataLoader`: collating a few rows needs no worker processes, about whose number
    Lightning would warn, and some strategies (DeepSpeed) replace a DataLoader's sampler.
    """

    micro_batches: MicroBatchSampler | Sequence[MicroBatch]
    collate: Callable[[MicroBatch], Collated]

    def __iter__(self) -> Iterator[Collated]:
        """The batches of one epoch."""
        return map(self.collate, iter(self.micro_batches))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.micro_batches)


class TrainingLoader(MicroBatchLoader[Batch]):
    """Collated micro-batches of samples, in the order of a sampler, which Lightning finds and whose epoch it sets.

    Its state counts the samples of all processes, so that a fit can resume with another number of processes. A
    checkpoint holds the weights of the last update, but no gradients: the micro-batches accumulated since then are
    given again, and so is one whose step an exception interrupted. Without a trainer, all that were given are done.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        sampler: MicroBatchSampler,
        pad_id: int,
        packed: bool = False,
        trainer: L.Trainer | None = None,
    ) -> None:
        super().__init__(sampler, partial(collate_micro_batch, samples, pad_id, packed))
        self.sampler = sampler
        self.trainer = trainer
        self._epoch, self._start, self._yielded = 0, 0, 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one epoch, or of the rest of it."""
        for count, micro_batch in enumerate(self.sampler, start=1):
            self._epoch, self._start, self._yielded = self.sampler.epoch, self.sampler.consumed, count
            yield self.collate(micro_batch)

    def samples_in(self, number: int) -> tuple[int, ...]:
        """Indices of the samples in a micro-batch of this process, counted from the epoch's start, resumed or not."""
        remaining = list(self.sampler)
        return remaining[number - (len(self.sampler) - len(remaining))].rows

    def state_dict(self) -> dict[str, Any]:
        """Epoch, the number of its samples that all processes have consumed, and a digest of their order."""
        sampler, done = self.sampler, self._yielded
        if self.trainer:
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress  # whose type lacks the counters
            interrupted = int(progress.current.ready - progress.current.processed)
            has_ended = progress.is_last_batch and not interrupted  # the epoch, with an update
            pending = 0 if has_ended else int(progress.current.processed) % self.trainer.accumulate_grad_batches
            done = max(0, done - interrupted - pending)
        consumed = self._start + done * sampler.batch_size * sampler.num_replicas
        return {
            "epoch": self._epoch,
            "taken": min(consumed, sampler.samples),
            "order": sampler.order_digest(self._epoch),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume with the sample after those that were consumed.

        Raises:
            ActError: If the rest of the epoch would be another, as with other data or another seed.
        """
        sampler, epoch, consumed = self.sampler, int(state["epoch"]), int(state["taken"])
        left = max(0, sampler.samples - consumed)
        if consumed and left and state["order"] != sampler.order_digest(epoch):
            problem = "must give the samples in the order of the epoch that was interrupted"
            hint = "Resume with the same data, seed_everything, data.shuffle and data.packing; or start anew."
            raise ActError(ConfigIssue("ckpt_path", f"epoch {epoch}, after {consumed} samples", problem, hint))
        sampler.resumed = self._epoch, self._start = epoch, consumed
        self._yielded = 0
        if self.trainer:
            # Lightning's counts must agree with an update that begins anew, and with another number of processes.
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
            done = len(sampler) - -(-left // (sampler.batch_size * sampler.num_replicas))
            uncounted = progress.total.processed - progress.total.completed  # which Lightning adds when it resumes
            for name in ("ready", "started", "processed"):
                setattr(progress.current, name, done)
            progress.current.completed = done - uncounted
