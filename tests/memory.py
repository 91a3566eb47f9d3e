"""How much memory tensors take at once, counted as they come and go, which the machine's noise does not reach."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """While it is entered, tensors of this thread are counted from the first operation that sees them until they go.

    Attributes:
        peak: The most bytes at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._now = 0, 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves((args, kwargs, result)):
            if isinstance(one, Tensor) and one.device.type != "meta":
                self._count(one.untyped_storage())
        return result

    def _count(self, storage: UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()  # torch keeps one object for each storage
        if key not in self._alive:
            self._alive.add(key)
            weakref.finalize(storage, self._forget, key, size)
            self._now += size
            self.peak = max(self.peak, self._now)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size
