"""SIGTERM, by which schedulers and clouds announce that a machine is taken away, and Ctrl-C: save, and exit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from act_lightning.callbacks.last_checkpoint import LastCheckpoint
from act_lightning.callbacks.root_writer import RootWriter
from act_lightning.defaults import LAST
from act_lightning.interruptions import RaiseAgain
from act_lightning.training.checkpoint_io import save_whole
from act_lightning.training.lightning_compat import accumulation_complete, callbacks_of, forget_handlers
from act_lightning.training.together import launched_by_lightning

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class PreemptionCheckpoint(RootWriter):
    """On SIGTERM or Ctrl-C, finish the update, save a checkpoint, and exit with status 143 or 130, as shells do.

    Before training starts, and after it has ended, the program exits at once: scores of finished abilities are kept,
    and files are complete or not there. In training all processes decide together after each update, so that they stop
    after the same one, whichever of them got the signal; a running validation is finished first. A second Ctrl-C does
    not wait. The checkpoint is :class:`LastCheckpoint`'s, or ``<default_root_dir>/checkpoints/last.ckpt`` if there is
    no such callback.

    Lightning's own handler is replaced while training: with it, a process waits for others that may not have got the
    signal, and training stops between two micro-batches of an update. Lightning's handling of SLURM's requeue signal
    (SIGUSR1) is unchanged.
    """

    _stop_requested: int | None = None
    _original_handlers: Mapping[int, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Exit at once while profiling and injecting."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._original_handlers is None:
            self._stop_requested, self._original_handlers = None, _handlers()
            _exit_at_once(trainer)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Still exit at once: Lightning has just registered its own handler."""
        _exit_at_once(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exit at once while models are compared: Lightning has registered its own handler."""
        _exit_at_once(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on only note that a signal came."""

        def request_stop(signum: int, frame: FrameType | None) -> None:
            if signum == self._stop_requested == signal.SIGINT:
                _exit(trainer, signum)
            self._stop_requested = signum
            rank_zero_info(f"{_NAMES[signal.Signals(signum)]}: stopping after this update")

        _set_handlers(dict.fromkeys(_NAMES, request_stop))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop after an update, if any process got a signal."""
        if accumulation_complete(trainer):
            self._stop_if_requested(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before export, if any process got a signal; exit at once from now on."""
        self._stop_if_requested(trainer)
        _exit_at_once(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exit at once while exporting: Lightning has restored an earlier handler."""
        _exit_at_once(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the original handlers; Lightning calls no ``teardown`` after an exception."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the original handlers."""
        super().teardown(trainer, pl_module, stage)
        if self._original_handlers is not None:
            _set_handlers(self._original_handlers)
            forget_handlers(trainer)  # or Lightning would restore ours
            self._original_handlers = None

    def _stop_if_requested(self, trainer: L.Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(self._stop_requested is not None, all=False):
            return
        last_checkpoint = next(iter(callbacks_of(trainer, LastCheckpoint)), None)
        if last_checkpoint is not None:
            path = last_checkpoint.save(trainer)
        else:
            path = Path(trainer.default_root_dir) / "checkpoints" / LAST
            save_whole(trainer, path)
        outcome = "nothing is saved" if path is None else f"go on with --ckpt_path last ({path})"
        signum = signal.Signals(self._stop_requested or signal.SIGTERM)
        rank_zero_info(f"stopped by {_NAMES[signum]} after update {trainer.global_step}; {outcome}")
        raise SIGTERMException(_exit_status(trainer, signum))


@contextmanager
def exiting_at_signals(trainer: L.Trainer) -> Iterator[None]:
    """Exit with status 143 or 130, and without incomplete files, if SIGTERM or Ctrl-C comes within the block."""
    original = _handlers()
    _exit_at_once(trainer)
    try:
        yield
    finally:
        _set_handlers(original)


def _exit_at_once(trainer: L.Trainer) -> None:
    """From now on, pass signals to the processes that this one started, and exit by raising."""

    def exit_at_once(signum: int, frame: FrameType | None) -> None:
        _exit(trainer, signum)

    _set_handlers(dict.fromkeys(_NAMES, exit_at_once))


def _exit(trainer: L.Trainer, signum: int) -> None:
    _set_handlers(dict.fromkeys(_NAMES, signal.SIG_IGN))  # a second signal must not interrupt cleaning up
    launcher: Any = trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(signum)
    name = _NAMES[signal.Signals(signum)]
    rank_zero_info(f"stopped by {name}; what is finished is kept: the same command goes on from there")
    error = SIGTERMException(_exit_status(trainer, signum))
    RaiseAgain(error).arm()
    raise error


def _exit_status(trainer: L.Trainer, signum: int) -> int:
    """As shells report it."""
    return 0 if launched_by_lightning(trainer.strategy) else 128 + signum


def _handlers() -> dict[int, Any]:
    return {signum: signal.getsignal(signum) for signum in _NAMES}


def _set_handlers(handlers: Mapping[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        RaiseAgain.disarm()
        for signum, handler in handlers.items():
            if handler is not None:
                signal.signal(signum, handler)
