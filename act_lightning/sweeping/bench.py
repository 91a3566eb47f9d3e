"""One model in memory: a transfer is applied to it, and taken back to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from act_lightning.callbacks.preparation import PreparedTransfer


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
def transferred(model: PreTrainedModel, prepare: Callable[[], PreparedTransfer], watch: Watch) -> Iterator[None]:
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
