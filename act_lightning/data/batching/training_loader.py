"""The loader of training, which knows where a fit that was broken off goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from act_lightning.data.batching.batches import Batch
from act_lightning.data.batching.micro_batches import (
    MicroBatchLoader,
    MicroBatchSampler,
    collate_chosen,
    deal_evenly,
)
from act_lightning.data.batching.progress import FitProgress
from act_lightning.data.labeling.labels import Sample
from act_lightning.errors import ActError, Fault


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
        left = deal_evenly(sampler.composition(sampler.taken), sampler.rank, sampler.num_replicas)
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
            rule = "must give the samples in the order of the epoch that was broken off"
            remedy = "Resume with the same data, seed_everything, data.shuffle and data.packing; or start anew."
            raise ActError(Fault("ckpt_path", f"epoch {epoch}, after {taken} samples", rule, remedy))
        sampler.begun = self._epoch, self._start = epoch, taken
        self._given = 0
        if self.progress:
            self.progress.resume(len(sampler) - -(-left // (sampler.batch_size * sampler.num_replicas)))
