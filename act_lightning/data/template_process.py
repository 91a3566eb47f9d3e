"""Chat templates rendered in a process of its own, with limits of time and memory: a model's template may be anyone's.

Jinja's sandbox keeps a template from the machine, but not from ``'a' * 10**10``, loops in loops, or macros that call
themselves.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import jinja2

from act_lightning.data.conversations import Conversation

SECONDS = 20.0
"""For the texts that are requested together."""
MEMORY = 1 << 30
"""Bytes, beyond those of the process that renders."""
CHARACTERS = 1 << 24
"""Of one text."""
_PROBLEMS = {
    MemoryError: f"it takes more than {MEMORY >> 30} GiB of memory",
    RecursionError: "it calls itself without end",
}
Request = tuple[Conversation, bool]
"""A conversation, and whether a generation prompt follows."""


class TemplateProcess:
    """A process that renders conversations until this object is gone.

    It is a fork, which has the tokenizer already, and renders as transformers does. Where the system has no ``fork``,
    or no limit of memory, templates are rendered without that limit.

    Args:
        render: Renders one request.
    """

    def __init__(self, render: Callable[[Request], str]) -> None:
        self.owner = os.getpid()
        self._render = render
        self._connection: Connection | None = None
        self._stop: Callable[[], object] = lambda: None

    def texts(self, requests: Sequence[Request]) -> list[str]:
        """The text of each request.

        Raises:
            ValueError: The template fails, or takes too much time or memory.
        """
        if not hasattr(os, "fork"):
            return _texts(self._render, requests)
        if self._connection is None:
            self._start()
        assert self._connection is not None
        try:
            self._connection.send(list(requests))
            if self._connection.poll(SECONDS):
                problem, texts = self._connection.recv()
                if problem is None:
                    return list(texts)
                raise ValueError(problem)
            problem = f"it takes more than {SECONDS:g} seconds"
        except (EOFError, OSError):
            problem = "it ended the process that renders it"
        self._connection = None
        self._stop()
        raise ValueError(problem)

    def _start(self) -> None:
        ours, theirs = Pipe()
        with warnings.catch_warnings():  # Python 3.12 warns where there are threads, of which the child uses none
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            ours.close()
            _serve(self._render, theirs)
        theirs.close()
        self._connection = ours
        self._stop = weakref.finalize(self, _end, self.owner, child, ours)


def _serve(render: Callable[[Request], str], connection: Connection) -> None:
    """Answer requests in the child, which never returns."""
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, whose end ends this process, too
        _limit_memory()
        while True:
            problem, texts = None, list[str]()
            try:
                texts = _texts(render, connection.recv())
            except EOFError:
                break
            except (ValueError, MemoryError) as error:
                problem = _PROBLEMS.get(type(error)) or str(error)
            connection.send((problem, texts))
    finally:
        os._exit(0)


def _texts(render: Callable[[Request], str], requests: Sequence[Request]) -> list[str]:
    texts: list[str] = []
    for request in requests:
        try:
            texts.append(render(request))
        except RecursionError as error:
            raise ValueError(_PROBLEMS[RecursionError]) from error
        except (jinja2.TemplateError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
            raise ValueError(str(error) or type(error).__name__) from error
        if len(texts[-1]) > CHARACTERS:
            raise ValueError(f"it writes more than {CHARACTERS:,} characters")
    return texts


def _limit_memory() -> None:
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def _end(owner: int, child: int, connection: Connection) -> None:
    connection.close()
    if os.getpid() != owner:  # a fork of the process that started the child
        return
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
