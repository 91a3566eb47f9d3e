"""Several processes that take a point each: nothing is exchanged while they work on it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from torch import distributed

from act_lightning.errors import ActError

_PATIENCE = timedelta(days=30)  # a process without a point waits as long as the others need for theirs
_Result = TypeVar("_Result")


class _Stopped(NamedTuple):
    error: Exception


class Crew:
    """The processes of a run.

    Args:
        rank: The number of this one.
        size: How many there are; more than one must share a process group.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        # Of its own, for that of the strategy gives up after half an hour.
        self._group: Any = distributed.new_group(backend="gloo", timeout=_PATIENCE) if size > 1 else None

    @property
    def leads(self) -> bool:
        """Whether this process is the first."""
        return self.rank == 0

    def all_of(self, work: Callable[[], _Result]) -> list[_Result]:
        """What every process makes of ``work``, in their order, the same on all of them.

        Raises:
            ActError: On all processes, if one of them did.
        """
        if self.size == 1:
            return [work()]
        mine: Any = None
        try:
            mine = work()
        except Exception as error:
            mine = _Stopped(_portable(error))
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, mine, group=self._group)
        for one in found:
            if isinstance(one, _Stopped):
                raise one.error
        return found

    def of_first(self, work: Callable[[], _Result]) -> _Result:
        """What the first process makes of ``work``, which the others do not do."""
        nothing: Any = None
        found: _Result = self.all_of(work if self.leads else lambda: nothing)[0]
        return found


def _portable(error: Exception) -> Exception:
    """The error, such that it can cross a process border."""
    return error if isinstance(error, ActError) else RuntimeError("".join(traceback.format_exception(error)))
