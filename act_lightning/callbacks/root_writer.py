"""One fit at a time writes to a Trainer's folder, whoever started it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import lightning as L

from act_lightning.checkpoints.lock import holds_root, lock_root
from act_lightning.training.together import collective_hook


class RootWriter(L.Callback):
    """Base of the callbacks that write to ``<default_root_dir>``, which other runs must not do meanwhile.

    The first of them in a Trainer locks the folder while a fit lasts, unless the command line has done so. Subclasses
    with hooks of these names call them.
    """

    _root_lock: ExitStack | None = None

    @collective_hook
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lock the folder of a fit; remove what killed runs have left there.

        Raises:
            ActError: Another process is writing there.
        """
        root = Path(trainer.default_root_dir)
        if stage == "fit" and trainer.is_global_zero and not holds_root(root):
            self._root_lock = ExitStack()
            self._root_lock.enter_context(lock_root(root, stage))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Free the folder; Lightning calls no ``teardown`` after an exception."""
        self._free_root()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Free the folder."""
        self._free_root()

    def _free_root(self) -> None:
        if self._root_lock is not None:
            self._root_lock.close()
            self._root_lock = None
