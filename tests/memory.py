"""How much memory torch has at once, counted by its own allocator on the CPU, which the machine's noise does not reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


@dataclass
class Peak:
    """The most bytes of tensors at once, of those that came into being meanwhile; known afterwards."""

    size: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Count what is allocated and freed on the CPU while this lasts."""
    peak = Peak()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield peak
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    peak.size = max(accumulate((event.nbytes() for event in events if event.name() == "[memory]"), initial=0))
