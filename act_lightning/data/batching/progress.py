"""Lightning's count of an epoch's micro-batches: what a checkpoint may take for done, and where a fit goes on."""

from __future__ import annotations

from typing import Any

import lightning as L


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
