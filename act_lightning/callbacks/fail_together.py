"""Whatever fails on one process, in any hook or step of a Trainer, ends all processes of the run."""

from __future__ import annotations

import lightning as L

from act_lightning.training.together import Peers


class FailTogether(L.Callback):
    """End all processes of a run within seconds if one fails, with its message.

    Without it, the others wait for that process until their collectives time out, half an hour by default. The command
    line adds it to every Trainer. It goes first among callbacks, so that nothing collective is tried in between.
    """

    _peers: Peers | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen from now on."""
        self._peers = Peers.of(trainer.strategy)
        if self._peers is not None:
            self._peers.sections += 1

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tell the others, and wait until they have left; Lightning calls no ``teardown`` after an exception."""
        if (peers := self._peers or Peers.of(trainer.strategy)) is not None:
            peers.tell(exception)
        self.teardown(trainer, pl_module, "")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen no longer."""
        if self._peers is not None:
            self._peers.sections -= 1
            self._peers = None
