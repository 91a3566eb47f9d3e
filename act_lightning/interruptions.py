"""What comes from outside of a verb's own code: Ctrl-C, also where a finalizer swallows it, and threads that fail."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from act_lightning.errors import ConfigIssue
from act_lightning.escaping import terminal_text

_SECONDS_TO_UNWIND = 0.5
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of errors of a full disk or quota."""


class RaiseAgain:
    """A handler of SIGALRM that raises an exception again where it was lost: in a finalizer, Python ignores it."""

    def __init__(self, error: BaseException) -> None:
        self._error, self._original = error, signal.getsignal(signal.SIGALRM)
        self._report_lost = sys.unraisablehook

    def arm(self) -> None:
        """Look twice a second, until :meth:`disarm`, whether the exception is on its way."""
        signal.signal(signal.SIGALRM, self)
        signal.setitimer(signal.ITIMER_REAL, _SECONDS_TO_UNWIND, _SECONDS_TO_UNWIND)
        sys.unraisablehook = lambda lost: None if lost.exc_value is self._error else self._report_lost(lost)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Raise, unless an exception is being handled: the program is cleaning up."""
        if sys.exception() is None:
            raise self._error

    @staticmethod
    def disarm() -> None:
        """The exception has come as far as it should: leave all as it was before it was armed."""
        handler = signal.getsignal(signal.SIGALRM)
        if isinstance(handler, RaiseAgain):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler._original)
            sys.unraisablehook = handler._report_lost


@contextmanager
def raising_at_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block at the first Ctrl-C, also where it is lost; others don't interrupt cleaning.

    A Trainer's run has handlers of its own.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        error = KeyboardInterrupt()
        RaiseAgain(error).arm()
        raise error

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        RaiseAgain.disarm()
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def naming_full_disks() -> Iterator[None]:
    """Say in a line, instead of a traceback, that the disk was full for a thread in the block, such as a logger's."""
    original = threading.excepthook

    def report(failure: Any) -> None:  # noqa: ANN401 - the interpreter's own type has no public name
        error, writer = failure.exc_value, f"a thread of {type(failure.thread).__module__.partition('.')[0]}"
        if not (isinstance(error, OSError) and error.errno in FULL_DISK):
            original(failure)
            return
        problem = f"must have room for what it writes, which is incomplete now ({error.strerror})"
        where = writer if error.filename is None else f"{writer}: {error.filename}"
        issue = ConfigIssue("disk", where, problem, "Free some space, and run again.")
        print(terminal_text(f"error: {issue}"), file=sys.stderr)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = original
