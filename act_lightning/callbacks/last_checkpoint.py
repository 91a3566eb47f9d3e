"""The last state of a fit, saved where resuming finds it, every so many minutes or updates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from act_lightning.callbacks.root_writer import RootWriter
from act_lightning.checkpoints.files import remove, remove_leftovers
from act_lightning.defaults import LAST, PREVIOUS
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.training.checkpoint_io import save_whole
from act_lightning.training.lightning_compat import (
    accumulation_complete,
    fix_epoch_count,
    is_last_batch_of_epoch,
    resumes_from_checkpoint,
)


class LastCheckpoint(RootWriter, ModelCheckpoint):
    """Save ``last.ckpt`` after an update when it is due, and when training ends.

    Lightning's :class:`~lightning.pytorch.callbacks.ModelCheckpoint` looks for it in the log folder of the new run, not
    of the previous one. This one uses the same folder in every run, replaces the file only once the new one is
    complete, and is found by ``ckpt_path="last"``. If there is none yet, the fit starts from scratch, and says so.

    Args:
        dirpath: The folder; by default ``<default_root_dir>/checkpoints``.
        every_n_minutes: At most so many minutes of training are lost if the run is killed; ``null`` for no limit. A
            checkpoint holds weights and what the optimizer keeps of each: 12 bytes a parameter for Adam in float32,
            84 GB for 7 B, which take a disk that writes 2 GB a second 42 s: 5 % of a quarter of an hour.
        every_n_updates: At most so many updates are lost; ``null`` for no limit.
        overwrite: Whether a fit that does not resume removes ``last.ckpt`` of an earlier one when training starts.
    """

    # Besides public hooks this overrides ModelCheckpoint._find_last_checkpoints, which "last" resolves through, and
    # sets _last_checkpoint_saved and _last_global_step_saved, which loggers read (lightning 2.6.6, 2026-11-28).

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_minutes: float | None = 15.0,
        every_n_updates: int | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(dirpath, save_top_k=0, save_last=True, enable_version_counter=False)
        self._configured_dirpath = self.dirpath
        self.every_n_minutes = every_n_minutes
        self.every_n_updates = every_n_updates
        self.overwrite = overwrite
        self._last_saved_at = 0.0
        self._save_at_epoch_end = False

    def folder(self, trainer: L.Trainer) -> Path:
        """The folder of ``last.ckpt``."""
        return Path(self._configured_dirpath or Path(trainer.default_root_dir) / "checkpoints")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse wrong settings; remove incomplete files of a killed run."""
        super().setup(trainer, pl_module, stage)
        problem, hint = "must be more than 0", "Write a number such as 15, or null for no such limit."
        intervals = {"every_n_minutes": self.every_n_minutes, "every_n_updates": self.every_n_updates}
        raise_if_any(
            ConfigIssue(f"LastCheckpoint.{name}", value, problem, hint)
            for name, value in intervals.items()
            if value is not None and not value > 0
        )
        self.dirpath = str(self.folder(trainer).resolve())
        if stage == "fit" and trainer.is_global_zero:
            remove_leftovers(Path(self.dirpath), LAST)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; remove checkpoints that a kill must not lead back to."""
        if self.overwrite and trainer.is_global_zero and not resumes_from_checkpoint(trainer):
            for name in (LAST, PREVIOUS):
                remove(self.folder(trainer) / name)
        self._last_saved_at = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Correct Lightning's count of epochs after resuming."""
        fix_epoch_count(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save after an update if it is due; at the end of an epoch only after validation."""
        if not accumulation_complete(trainer):
            return
        updates, minutes = trainer.global_step, self.every_n_minutes
        if trainer.should_stop or updates == trainer.max_steps:
            is_due = True  # once training has ended, Lightning counts the epoch that ends here as complete
        elif self.every_n_updates is not None and updates % self.every_n_updates == 0:
            is_due = updates != self._last_global_step_saved
        else:
            is_due = minutes is not None and time.monotonic() - self._last_saved_at >= 60 * minutes
        if not trainer.strategy.broadcast(is_due):
            return
        if is_last_batch_of_epoch(trainer):
            self._save_at_epoch_end = True
        else:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, if it was due before the epoch was validated."""
        if self._save_at_epoch_end:
            self.save(trainer)

    def on_validation_end(self, *_: Any) -> None:
        """Do nothing: no metric decides."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the final state, from which a fit of more epochs can resume, unless it was just saved."""
        if trainer.global_step != self._last_global_step_saved:
            self.save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save nothing: an interrupted state is not one to resume from."""
        super().on_exception(trainer, pl_module, exception)

    def save(self, trainer: L.Trainer) -> Path | None:
        """Save now, on every process.

        Returns:
            The path; ``None`` in a ``fast_dev_run``, which saves nothing.

        Raises:
            ActError: On every process, if it could not be written; the previous checkpoint is still there then.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        path = self.folder(trainer) / LAST
        self.last_model_path = self._last_checkpoint_saved = str(path)
        save_whole(trainer, path)
        self._last_global_step_saved = trainer.global_step
        self._last_saved_at, self._save_at_epoch_end = time.monotonic(), False
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.after_save_checkpoint(self)
        return path

    def state_dict(self) -> dict[str, Any]:
        """Empty: nothing has to be remembered."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """The candidates of ``ckpt_path="last"``: ours, and those that Lightning writes when SLURM requeues a job."""
        folder, root = self.folder(trainer), Path(trainer.default_root_dir)
        paths = {str(path) for path in (*folder.glob("last*.ckpt"), *root.glob("hpc_ckpt_*.ckpt"))}
        if not paths:
            rank_zero_info(f"no checkpoint in {folder} yet: the fit starts from the beginning")
        return paths
