"""Random numbers as if nothing had been drawn: what is measured before a fit must not change the fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lightning.pytorch.utilities.seed import isolate_rng


@contextmanager
def rng_as_before() -> Iterator[None]:
    """Lightning's ``isolate_rng``, which restores nothing after an error, made to restore it then too."""
    isolation = isolate_rng()
    with ExitStack() as stack:
        isolation.__enter__()
        stack.callback(isolation.__exit__, None, None, None)
        yield
