"""Ctrl-C arrives wherever the program is, and a full disk in another package's thread is said in a line."""

from __future__ import annotations

import errno
import signal
import sys
import threading
import time

import pytest

from act_lightning.interruptions import naming_full_disks, raising_at_ctrl_c


class Finalized:
    """Gets Ctrl-C in its finalizer, where Python ignores exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_finalizer_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)], sys.unraisablehook
    end, cleaned = time.monotonic() + 60, []

    @raising_at_ctrl_c()
    def work() -> None:
        try:
            Finalized()
            while time.monotonic() < end:
                pass
        finally:
            signal.raise_signal(signal.SIGINT)  # the second does not interrupt cleaning up
            time.sleep(1.2)  # and the first is not raised again there
            cleaned.append(time.monotonic())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert max(cleaned) < end
    assert capfd.readouterr().err == ""
    assert ([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)], sys.unraisablehook) == handlers
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_full_disk_in_a_thread(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: others.append(failure.exc_value))

    def fail(error: Exception) -> None:
        raise error

    errors = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Full", "a\x1bb"), ValueError()]
    with naming_full_disks():
        for error in errors:
            thread = threading.Thread(target=fail, args=(error,))
            thread.start()
            thread.join()
    assert others == errors[2:]
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("error: disk = 'a thread of threading': must have room for what it writes, which is")
    assert "(No space left on device)" in first
    assert "a thread of threading: a\\x1bb" in second.replace("\\u001b", "\\x1b").replace("\\\\", "\\")
