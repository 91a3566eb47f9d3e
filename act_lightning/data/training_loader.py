"""Lightning's count of an epoch's micro-batches: what a checkpoint may take for done, and where a fit goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning as L

from act_lightning.data.batches import Batch
from act_lightning.data.labels import Sample
from act_lightning.data.micro_batches import MicroBatchLoader, MicroBatchSampler, collate_chosen, shard_evenly
from act_lightning.errors import ActError, ConfigIssue


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
        super().__init__(sampler, partial(collate_chosen, samples, pad_id, packed))
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
