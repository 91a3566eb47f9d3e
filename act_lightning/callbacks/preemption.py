"""SIGTERM, with which schedulers and clouds announce that a machine is taken away: save what is done, and exit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from act_lightning.callbacks.last_checkpoint import LastCheckpoint
from act_lightning.training.checkpoint_io import LAST, save_whole
from act_lightning.training.lightning_compat import accumulation_complete, forget_sigterm_handler

STATUS = 128 + signal.SIGTERM  # 143, as shells report a program that SIGTERM ended


class PreemptionCheckpoint(L.Callback):
    """On SIGTERM, finish the update, save a checkpoint, and exit with status 143.

    Before training starts, and after it has ended, the program exits at once: scores of finished abilities are kept,
    and files are complete or not there. In training all processes decide together after each update, so that they stop
    after the same one, whichever of them got the signal; a running validation is finished first. The checkpoint is
    :class:`LastCheckpoint`'s, or ``<default_root_dir>/checkpoints/last.ckpt`` if there is no such callback.

    Lightning's own handler is replaced while training: with it, a process waits for others that may not have got the
    signal, and training stops between two micro-batches of an update. Lightning's handling of SLURM's requeue signal
    (SIGUSR1) is unchanged.
    """

    _stop_requested = False
    _original_handler: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Exit at once while profiling and injecting."""
        if stage == "fit" and self._original_handler is None:
            self._stop_requested, self._original_handler = False, signal.getsignal(signal.SIGTERM)
            exit_at_sigterm(trainer)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Still exit at once: Lightning has just registered its own handler."""
        exit_at_sigterm(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on only note that SIGTERM came."""

        def request_stop(signum: int, frame: FrameType | None) -> None:
            self._stop_requested = True

        _set_handler(request_stop)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop after an update, if any process got the signal."""
        if accumulation_complete(trainer):
            self._stop_if_requested(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before export, if any process got the signal; exit at once from now on."""
        self._stop_if_requested(trainer)
        exit_at_sigterm(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exit at once while exporting: Lightning has restored an earlier handler."""
        exit_at_sigterm(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the original handler; Lightning calls no ``teardown`` after an exception."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the original handler."""
        if self._original_handler is not None:
            _set_handler(self._original_handler)
            forget_sigterm_handler(trainer)  # or Lightning would restore ours
            self._original_handler = None

    def _stop_if_requested(self, trainer: L.Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(self._stop_requested, all=False):
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        last_checkpoint = next((callback for callback in callbacks if isinstance(callback, LastCheckpoint)), None)
        if last_checkpoint is not None:
            path = last_checkpoint.save(trainer)
        else:
            path = Path(trainer.default_root_dir) / "checkpoints" / LAST
            save_whole(trainer, path)
        outcome = "nothing is saved" if path is None else f"resume with ckpt_path: last ({path})"
        rank_zero_info(f"stopped by SIGTERM after update {trainer.global_step}; {outcome}")
        raise SIGTERMException(_exit_status(trainer))


@contextmanager
def leaving_at_sigterm(trainer: L.Trainer) -> Iterator[None]:
    """Exit with status 143, and without incomplete files, if SIGTERM comes within the block."""
    original = signal.getsignal(signal.SIGTERM)
    exit_at_sigterm(trainer)
    try:
        yield
    finally:
        _set_handler(original)


def exit_at_sigterm(trainer: L.Trainer) -> None:
    """From now on, pass SIGTERM to the processes that this one started, and exit by raising."""

    def exit_at_once(signum: int, frame: FrameType | None) -> None:
        _set_handler(signal.SIG_IGN)  # a second signal must not interrupt cleaning up
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signum)
        rank_zero_info("stopped by SIGTERM; what is finished is kept, and used again by the next run")
        raise SIGTERMException(_exit_status(trainer))

    _set_handler(exit_at_once)


def _exit_status(trainer: L.Trainer) -> int:
    """143; but 0 in a process that Lightning launched, because the launching one is killed if another fails."""
    strategy = trainer.strategy
    environment = strategy.cluster_environment if isinstance(strategy, ParallelStrategy) else None
    return 0 if isinstance(environment, LightningEnvironment) and trainer.global_rank > 0 else STATUS


def _set_handler(handler: Any) -> None:  # noqa: ANN401 - whatever signal.signal takes
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
