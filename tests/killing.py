"""Programs that are ended from outside: killed at a chosen point, or told to stop; each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_SECONDS = 200
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.killing", "act_lightning.cli.lightning_cli"])  # imports take longer than a run


@dataclass(frozen=True)
class Point:
    """A moment in a program's life, by what it asks the operating system for.

    Attributes:
        event: Name of an audit event of Python's: ``open`` or ``os.rename``.
        path: Pattern that the path asked for must contain: of a rename the new name.
        time: Which of these requests it is, counted from 1.
        half: Cut the file that is to be renamed in half, as if the end were not written yet.
        by: The signal that comes then.
    """

    event: str
    path: str
    time: int = 1
    half: bool = False
    by: int = signal.SIGKILL

    def reach(self) -> None:
        """From now on send the signal when the point is reached, before the request is granted."""
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event != self.event or not re.search(self.path, os.fsdecode(arguments[event == "os.rename"])):
                return
            seen += 1
            if seen == self.time:
                if self.half:
                    os.truncate(arguments[0], Path(arguments[0]).stat().st_size // 2)
                os.kill(os.getpid(), self.by)

        sys.addaudithook(hook)


def status_of(verb: str, config: Path, *arguments: object, until: Point | None = None) -> int:
    """The exit status of a verb, negative where a signal has ended it; ``until`` says when one comes."""
    process: BaseProcess = _FORKED.Process(target=_call, args=(verb, config, tuple(map(str, arguments)), until))
    process.start()
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"`{verb}` has not ended within {_SECONDS} s")
    return process.exitcode


def _call(verb: str, config: Path, arguments: tuple[str, ...], until: Point | None) -> None:
    from act_lightning.cli import main

    for handled in (signal.SIGTERM, signal.SIGINT):  # the process that forks handles them in its own way
        signal.signal(handled, signal.SIG_DFL)
    if until is not None:
        until.reach()
    sys.exit(main([verb, "--config", str(config), *arguments]))
