"""Several processes that take a point each, with one model in memory to apply a transfer to and revert it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel

from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError
from act_lightning.evaluation.evaluator import score_model
from act_lightning.transfer.preparation import PreparedTransfer

_PATIENCE = timedelta(days=30)  # a process without a point waits as long as the others need for theirs
_Result = TypeVar("_Result")


class _Stopped(NamedTuple):
    error: Exception


class Workers:
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


@dataclass
class Watch:
    """How long each part of a point took.

    Attributes:
        seconds: By part.
        device: Whose queued work belongs to the part.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count what is done within to a part."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@contextmanager
def apply_and_revert(model: PreTrainedModel, prepare: Callable[[], PreparedTransfer], watch: Watch) -> Iterator[None]:
    """The model with a transfer applied; afterwards, and after an error, every bit is as it was.

    The original values of all rows that change are kept where the model is: as much memory as a transfer has rows.

    Args:
        model: The target.
        prepare: Gives the transfer.
        watch: Is told the seconds of ``selecting``, ``applying`` and ``reverting``.
    """
    originals: list[tuple[Tensor, Tensor | slice, Tensor]] = []
    try:
        with watch.timing("selecting"):
            prepared = prepare()
        with watch.timing("applying"), prepared.injection() as injection:
            for name in injection.names:
                values = model.get_parameter(name).data
                rows = _rows(injection.rows(name), values)
                originals.append((values, rows, values.clone() if isinstance(rows, slice) else values[rows]))
                injection.apply_(name, values)
        yield
    finally:
        with watch.timing("reverting"):
            for values, rows, original in originals:
                values[rows] = original


def _rows(numbers: Tensor, values: Tensor) -> Tensor | slice:
    return slice(None) if len(numbers) == len(values) else numbers.to(values.device)


class Questions:
    """All evaluation sets."""

    def __init__(self, data: AbilityDataModule) -> None:
        self._data = data

    def ask(self, model: PreTrainedModel) -> dict[str, str]:
        """A digit for each item in its order."""
        return dict(score_model(self._data, model, self._data.evaluation_tokens).digits)
