"""All processes of a run fail together: one that fails tells the others, which would wait for it in a collective."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed
from torch.distributed.distributed_c10d import _get_default_store

from act_lightning.errors import ActError, ConfigIssue
from act_lightning.escaping import terminal_text

_Hook = TypeVar("_Hook", bound=Callable[..., Any])
_SECONDS_BETWEEN_CHECKS = 0.5
_SECONDS_TO_LEAVE = 3.0  # for a process that hears of a failure, before it is ended
_SECONDS_TO_WAIT = 15.0  # for a process that fails, until the others have left


@contextmanager
def all_fail_together(strategy: Strategy) -> Iterator[None]:
    """A section in which processes wait for each other: if one fails, all end within seconds, with its message.

    The others raise it where they fail, too, for want of that process. Those that wait in a collective cannot raise:
    they print it, and exit. Sections may be nested. With a single process, nothing happens.

    Raises:
        ActError: Another process failed first.
    """
    peers = Peers.of(strategy)
    if peers is not None:
        peers.sections += 1
    try:
        yield
    except BaseException as error:
        listening = peers or Peers.of(strategy)  # the group may have come into being within the section
        instead = None if listening is None else listening.tell(error)
        if instead is not None:
            raise instead from error
        raise
    finally:
        if peers is not None:
            peers.sections -= 1


def collective_hook(hook: _Hook) -> _Hook:
    """Make a section of :func:`all_fail_together` of a method whose first argument is the Trainer."""

    @wraps(hook)
    def in_section(self: object, trainer: L.Trainer, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with all_fail_together(trainer.strategy):
            return hook(self, trainer, *args, **kwargs)

    return cast(_Hook, in_section)


def launched_by_lightning(strategy: Strategy) -> bool:
    """Whether another process launched this one, which must exit with status 0, or Lightning kills that process."""
    environment = strategy.cluster_environment if isinstance(strategy, ParallelStrategy) else None
    return isinstance(environment, LightningEnvironment) and environment.global_rank() > 0


class Peers:
    """The other processes of a group, and what they tell by the store with which they found each other.

    Attributes:
        sections: How many sections this process is in; it listens if there are any.
    """

    _current: Peers | None = None

    def __init__(self, strategy: ParallelStrategy) -> None:
        self.sections = 0
        store = cast(Any, _get_default_store())  # torch's stubs do not know its method clone
        self._rank, self._store = distributed.get_rank(), store
        self._telling, self._listening = store.clone(), store.clone()  # connections: neither blocks the other
        self._round = (0, threading.Event())  # failures that the program has survived; set if this process leaves
        self._told: BaseException | None = None
        self._instead: ActError | None = None
        self._launched = launched_by_lightning(strategy)
        threading.Thread(target=self._listen, name="act_lightning-peers", daemon=True).start()

    @classmethod
    def of(cls, strategy: Strategy) -> Peers | None:
        """The peers under a strategy, or ``None`` if there are none, or none yet."""
        if not isinstance(strategy, ParallelStrategy) or not distributed.is_initialized():
            return None
        if distributed.get_world_size() == 1:
            return None
        if cls._current is None or cls._current._store is not _get_default_store():
            cls._current = cls(strategy)
        return cls._current

    def tell(self, error: BaseException) -> ActError | None:
        """Tell the others of an exception, once, and wait until they have left.

        Returns:
            What to raise instead, if another process failed first and said something else.
        """
        if error is self._instead:
            return None
        if error is not self._told:
            self._told, failure = error, _Failure.of(error)
            first = self._exchange(failure)
            self._instead = None if first.message == failure.message else first.as_error()
        return self._instead

    def _exchange(self, failure: _Failure) -> _Failure:
        """Tell a failure, and give the first one that any process has told."""
        (number, left), first = self._round, failure
        try:
            first = _Failure.read(self._telling.compare_set(_key(number), "", json.dumps(asdict(failure))))
            self._telling.set(f"{_key(number)}/left/{self._rank}", "")
            left.set()
            others = [rank for rank in range(distributed.get_world_size()) if rank != self._rank]
            deadline = time.monotonic() + (_SECONDS_TO_WAIT if first.rank == self._rank else 0)
            while time.monotonic() < deadline:
                if self._telling.check([f"{_key(number)}/left/{rank}" for rank in others]):
                    break
                time.sleep(_SECONDS_BETWEEN_CHECKS / 10)
        except distributed.DistError:  # process 0, which keeps the store, has ended
            left.set()
        self._round = (number + 1, threading.Event())
        return first

    def _listen(self) -> None:
        """End this process if another has failed and this one does not leave in time: it waits in a collective."""
        while distributed.is_initialized() and _get_default_store() is self._store:
            time.sleep(_SECONDS_BETWEEN_CHECKS)
            number, left = self._round
            if not self.sections:
                continue
            try:
                if not self._listening.check([_key(number)]):
                    continue
                failure = _Failure.read(self._listening.get(_key(number)))
            except distributed.DistError:
                failure = _Failure(0, "it ended without a message", 1)
            if failure.rank == self._rank or left.wait(_SECONDS_TO_LEAVE) or not self.sections:
                continue
            print(terminal_text(f"error: {failure.as_error()}"), file=sys.stderr, flush=True)
            try:
                self._listening.set(f"{_key(number)}/left/{self._rank}", "")
            finally:
                os._exit(0 if self._launched else failure.status)


@dataclass(frozen=True)
class _Failure:
    """What a process tells the others: its number, a message, and the exit status of the run."""

    rank: int
    message: str
    status: int

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        """The failure of this process by an exception."""
        status, message = 1, str(error) if isinstance(error, ActError) else f"{type(error).__name__}: {error}"
        if isinstance(error, SIGTERMException):
            status, message = int(error.code or 128 + signal.SIGTERM), "it was stopped by a signal"
        return cls(distributed.get_rank(), message, status)

    @classmethod
    def read(cls, text: bytes) -> _Failure:
        """What a process has told."""
        return cls(**json.loads(text))

    def as_error(self) -> ActError:
        """The error that the other processes raise or print."""
        return ActError(
            ConfigIssue(
                "process", ..., f"process {self.rank} failed: {self.message.rstrip('.')}", "All processes end with it."
            )
        )


def _key(number: int) -> str:
    return f"act_lightning/failure/{number}"
