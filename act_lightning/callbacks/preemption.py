"""SIGTERM, by which schedulers and clouds announce that a machine is taken away: keep what is done, and leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from act_lightning.callbacks.last_checkpoint import LastCheckpoint
from act_lightning.training.checkpoint_io import LAST, save_whole
from act_lightning.training.lightning_compat import accumulation_complete, forget_sigterm_handler

STATUS = 128 + signal.SIGTERM  # 143, as shells tell of a program that SIGTERM has ended
_Handler = Callable[[int, FrameType | None], Any]


class PreemptionCheckpoint(L.Callback):
    """At SIGTERM finish the accumulation window, save a checkpoint, and leave with exit status 143.

    Before training starts, and after it has ended, the program leaves at once: scores of finished abilities are kept,
    files are complete or not there. In training all processes decide together after each update, so that they stop at
    the same one, whichever of them was told; a validation is finished first. The checkpoint is
    :class:`LastCheckpoint`'s, or ``<default_root_dir>/checkpoints/last.ckpt`` where there is no such callback.

    Lightning's own handler is replaced while training: in it a process waits for others that may not have been told,
    and training breaks off between two micro-batches of an update. What Lightning does at SLURM's requeue signal
    (SIGUSR1) stays as it is.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave at once while profiling and injecting."""
        if stage == "fit" and self._before is None:
            self._asked, self._before = False, signal.getsignal(signal.SIGTERM)
            _handle(leave_at_once(trainer))

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave at once still, not as Lightning would, which has registered its handler by now."""
        _handle(leave_at_once(trainer))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on remember that SIGTERM came."""
        _handle(self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop after an update, if any process was told to."""
        if accumulation_complete(trainer):
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before export, if any process was told to; leave at once from now on."""
        self._stop_if_asked(trainer)
        _handle(leave_at_once(trainer))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave at once while exporting: Lightning has restored an earlier handler."""
        _handle(leave_at_once(trainer))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the handler that was there before."""
        self._restore(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the handler that was there before."""
        self._restore(trainer)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            place = _save(trainer)
            kept = "nothing is kept" if place is None else f"go on with ckpt_path: last ({place})"
            rank_zero_info(f"stopped by SIGTERM after update {trainer.global_step}; {kept}")
            raise SIGTERMException(_status(trainer))

    def _restore(self, trainer: L.Trainer) -> None:
        if self._before is not None:
            _handle(self._before)
            forget_sigterm_handler(trainer)
            self._before = None


@contextmanager
def leaving_at_sigterm(trainer: L.Trainer) -> Iterator[None]:
    """Leave with exit status 143, and no file half written, when SIGTERM comes within the block."""
    before = signal.getsignal(signal.SIGTERM)
    _handle(leave_at_once(trainer))
    try:
        yield
    finally:
        _handle(before)


def leave_at_once(trainer: L.Trainer) -> _Handler:
    """A handler that tells the processes that this one started, and raises what ends the program."""

    def leave(signum: int, frame: FrameType | None) -> None:
        _handle(signal.SIG_IGN)  # once is enough: what is open is being closed
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signum)
        rank_zero_info("stopped by SIGTERM; what is finished is kept, and used again by the next run")
        raise SIGTERMException(_status(trainer))

    return leave


def _save(trainer: L.Trainer) -> Path | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    ours = next((callback for callback in callbacks if isinstance(callback, LastCheckpoint)), None)
    if ours is not None:
        return ours.save(trainer)
    place = Path(trainer.default_root_dir) / "checkpoints" / LAST
    save_whole(trainer, place)
    return place


def _status(trainer: L.Trainer) -> int:
    """The exit status of this process; a helper that Lightning started ends well, lest the first be killed for it."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    helps = isinstance(environment, LightningEnvironment) and trainer.global_rank > 0
    return 0 if helps else STATUS


def _handle(handler: Any) -> None:  # noqa: ANN401 - whatever signal.signal takes
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
