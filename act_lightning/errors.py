"""What went wrong, said so that a user can mend it: setting, value, rule, remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

_LONGEST_VALUE = 200


@dataclass(frozen=True)
class Fault:
    """One mistake in what the user gave.

    Attributes:
        setting: Where the value stands, such as ``transfer.ratio`` or a file's path with a line number.
        value: The value found there.
        rule: What the value must satisfy, as a sentence fragment ("must lie in (0, 1]").
        remedy: What to do about it, as a sentence.
    """

    setting: str
    value: object
    rule: str
    remedy: str

    def __str__(self) -> str:
        """The fault on one line.

        >>> print(Fault("transfer.ratio", 2, "must lie in (0, 1]", "Write a share such as 0.01."))
        transfer.ratio = 2: must lie in (0, 1]. Write a share such as 0.01.
        """
        value = repr(self.value)
        if len(value) > _LONGEST_VALUE:
            value = value[:_LONGEST_VALUE] + "…"
        return f"{self.setting} = {value}: {self.rule}. {self.remedy}"


class ActError(ValueError):
    """A user's mistake, or several, found before work begins.

    >>> raise ActError(Fault("data.batch_size", 0, "must be at least 1", "Write 1 or more."))
    Traceback (most recent call last):
    ...
    act_lightning.errors.ActError: data.batch_size = 0: must be at least 1. Write 1 or more.
    """

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults))

    def __reduce__(self) -> tuple[type[ActError], tuple[Fault, ...]]:
        """Keep the faults when the error crosses a process border."""
        return type(self), self.faults


def refuse(faults: Iterable[Fault]) -> None:
    """Raise one :class:`ActError` with all ``faults``, or return when there are none."""
    found = tuple(faults)
    if found:
        raise ActError(*found)


@contextmanager
def located(place: str | None) -> Iterator[None]:
    """Say in every fault found within where it was found.

    >>> with located("sums.jsonl:3"):
    ...     raise ActError(Fault("data.template", "chat", "cannot tell this", "Mend the row."))
    Traceback (most recent call last):
    ...
    act_lightning.errors.ActError: sums.jsonl:3, data.template = 'chat': cannot tell this. Mend the row.

    Args:
        place: Such as a file with a line number; ``None`` adds nothing.
    """
    try:
        yield
    except ActError as error:
        if place is None:
            raise
        faults = [replace(fault, setting=f"{place}, {fault.setting}") for fault in error.faults]
        raise ActError(*faults) from error
