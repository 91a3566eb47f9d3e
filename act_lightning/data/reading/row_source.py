"""What every source of rows can do: give all of them, again and again, or some of them by number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

Row = dict[str, Any]
LocatedRow = tuple[str, Row]

_WINDOW = 100_000


class RowSource(ABC):
    """Rows in a fixed order, each with the place it stands at, such as ``data/science-ar.jsonl:3``."""

    @abstractmethod
    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows, from the first, read while they are used.

        Raises:
            ActError: At the first row that cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str | None:
        """A text that differs whenever the rows do, or ``None`` if this cannot be known."""

    def at(self, numbers: Sequence[int]) -> Iterator[LocatedRow]:
        """Some rows, in the order asked for.

        Read in sweeps over all rows, so that never more than 100,000 of them are held: a source that is read in order
        can be shuffled without memory for all of it.

        Args:
            numbers: Rows counted from 0, none of them twice.
        """
        for start in range(0, len(numbers), _WINDOW):
            window = numbers[start : start + _WINDOW]
            wanted, end = set(window), max(window) + 1
            found = {number: row for number, row in enumerate(islice(self, end)) if number in wanted}
            yield from map(found.__getitem__, window)
