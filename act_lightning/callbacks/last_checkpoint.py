"""The last state of a fit, kept in a place where resuming finds it, every so many minutes or updates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from act_lightning.checkpoints.files import remove_leftovers
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.training.checkpoint_io import LAST, save_whole
from act_lightning.training.lightning_compat import accumulation_complete, fix_epoch_count, is_last_batch_of_epoch


class LastCheckpoint(ModelCheckpoint):
    """Keep ``last.ckpt``: after an update when it is time, and when training ends.

    Lightning's :class:`~lightning.pytorch.callbacks.ModelCheckpoint` would look for it beside the logs of the new run,
    not of the one before. This one is in the same place for every run, is written beside that place and renamed, and
    is found by ``ckpt_path="last"``. Where there is none yet, the fit starts from the beginning, and says so.

    Args:
        dirpath: The folder; by default ``<default_root_dir>/checkpoints``.
        every_n_minutes: At most so many minutes of training are lost in a kill; ``null`` for no limit in time. A
            checkpoint holds weights and what the optimizer keeps of each: 12 bytes a parameter for Adam in float32,
            84 GB for 7 B, which take a disk that writes 2 GB a second 42 s: 5 % of a quarter of an hour.
        every_n_updates: At most so many updates are lost; ``null`` for no limit in updates.
    """

    def __init__(
        self, dirpath: str | None = None, every_n_minutes: float | None = 15.0, every_n_updates: int | None = None
    ) -> None:
        super().__init__(dirpath, save_top_k=0, save_last=True, enable_version_counter=False)
        self._given = self.dirpath
        self.every_n_minutes = every_n_minutes
        self.every_n_updates = every_n_updates
        self._saved_at = 0.0
        self._waits = False

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the settings."""
        every = {"every_n_minutes": self.every_n_minutes, "every_n_updates": self.every_n_updates}
        problem, hint = "must be more than 0", "Write a number such as 15, or null for no such limit."
        wrong = {name: value for name, value in every.items() if value is not None and not value > 0}
        return [ConfigIssue(f"LastCheckpoint.{name}", value, problem, hint) for name, value in wrong.items()]

    def folder(self, trainer: L.Trainer) -> Path:
        """Where ``last.ckpt`` stands."""
        return Path(self._given or Path(trainer.default_root_dir) / "checkpoints")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse wrong settings; remove what a killed run has left half written."""
        raise_if_any(self.issues())
        self.dirpath = str(self.folder(trainer).resolve())
        if stage == "fit" and trainer.is_global_zero:
            remove_leftovers(Path(self.dirpath), LAST)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Mend Lightning's count of epochs, which it loses when it resumes."""
        fix_epoch_count(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save when it is time, after an update; the last of an epoch is validated first."""
        if accumulation_complete(trainer) and trainer.strategy.broadcast(self._is_time(trainer)):
            self._waits = is_last_batch_of_epoch(trainer)
            if not self._waits:
                self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if it was time when the epoch was not yet validated."""
        if self._waits:
            self.save(trainer)

    def on_validation_end(self, *_: Any) -> None:
        """Nothing: no metric decides."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end, from which a fit of more epochs may go on, unless it has just been saved."""
        if trainer.global_step != self._last_global_step_saved:
            self.save(trainer)

    def on_exception(self, *_: Any) -> None:
        """Nothing: the state that an exception has broken off is none to go on from."""

    def save(self, trainer: L.Trainer) -> Path | None:
        """Save now, on every process.

        Returns:
            Where; ``None`` in a ``fast_dev_run``, which keeps nothing.

        Raises:
            ActError: On every process, if it could not be written; the one before is there then.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        place = self.folder(trainer) / LAST
        self.last_model_path = self._last_checkpoint_saved = str(place)
        save_whole(trainer, place)
        self._last_global_step_saved = trainer.global_step
        self._saved_at, self._waits = time.monotonic(), False
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.after_save_checkpoint(self)
        return place

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember: the file is where it is."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _is_time(self, trainer: L.Trainer) -> bool:
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            return True  # Lightning counts an epoch that ends here as whole when training has ended
        if self.every_n_updates is not None and trainer.global_step % self.every_n_updates == 0:
            return trainer.global_step != self._last_global_step_saved
        return self.every_n_minutes is not None and time.monotonic() - self._saved_at >= 60 * self.every_n_minutes

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """What ``ckpt_path="last"`` chooses the newest of: ours, and those that Lightning writes when SLURM asks."""
        folder, root = self.folder(trainer), Path(trainer.default_root_dir)
        found = {str(path) for path in (*folder.glob("last*.ckpt"), *root.glob("hpc_ckpt_*.ckpt"))}
        if not found:
            rank_zero_info(f"no checkpoint in {folder} yet: the fit starts from the beginning")
        return found
