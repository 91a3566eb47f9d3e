"""Errors that tell the user what to change: each issue names a setting, its value, the problem and a hint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from act_lightning.redaction import redact, redact_text

Level = Literal["error", "warning", "note"]
"""From worst to mildest: an error stops the run, a warning deserves a thought, a note is for information."""
_LONGEST_VALUE = 200


@dataclass(frozen=True)
class ConfigIssue:
    """One mistake in the settings, models or data of a run, or, as a warning or note, something to know about them.

    Attributes:
        setting: The setting's name, such as ``transfer.ratio``, or a file's path with a line number.
        value: The setting's value; ``...`` if the problem is a sentence of its own that needs no value.
        problem: What the value must satisfy, as the rest of a sentence ("must lie in (0, 1]").
        hint: What the user can do, as a sentence.
        level: Only errors stop a run; ``plan`` also gives warnings and notes.
    """

    setting: str
    value: object
    problem: str
    hint: str
    level: Level = "error"

    def __str__(self) -> str:
        """The issue on one line.

        >>> print(ConfigIssue("transfer.ratio", 2, "must lie in (0, 1]", "Write a share such as 0.01."))
        transfer.ratio = 2: must lie in (0, 1]. Write a share such as 0.01.
        """
        return f"{self.message}. {self.hint}"

    @property
    def message(self) -> str:
        """The issue without its hint and without a full stop."""
        if self.value is ...:
            return self.problem
        value = repr(redact(self.value, self.setting.rpartition(".")[2]))
        if len(value) > _LONGEST_VALUE:
            value = value[:_LONGEST_VALUE] + "…"
        return redact_text(f"{self.setting} = {value}: {self.problem}")

    def to_json(self) -> dict[str, str]:
        """As ``plan --json`` and ``transfer.json`` hold it."""
        message = self.message + ("" if self.value is ... else ".")
        return {"level": self.level, "setting": self.setting, "message": message, "remedy": self.hint}


class ActError(ValueError):
    """One or more mistakes of the user, found before work begins.

    >>> raise ActError(ConfigIssue("data.batch_size", 0, "must be at least 1", "Write 1 or more."))
    Traceback (most recent call last):
    ...
    act_lightning.errors.ActError: data.batch_size = 0: must be at least 1. Write 1 or more.
    """

    def __init__(self, *issues: ConfigIssue) -> None:
        self.issues = issues
        super().__init__("\n".join(str(issue) for issue in issues))

    def __reduce__(self) -> tuple[type[ActError], tuple[ConfigIssue, ...]]:
        """Keep the issues when the error is pickled, on its way to another process."""
        return type(self), self.issues


def raise_if_any(issues: Iterable[ConfigIssue]) -> None:
    """Raise one :class:`ActError` with all ``issues``, or return when there are none."""
    if collected := tuple(issues):
        raise ActError(*collected)


@contextmanager
def located(location: str | None) -> Iterator[None]:
    """Put a location before the setting of every issue that is raised in the ``with`` block.

    >>> with located("sums.jsonl:3"):
    ...     raise ActError(ConfigIssue("data.template", "chat", "cannot render this row", "Correct the row."))
    Traceback (most recent call last):
    ...
    act_lightning.errors.ActError: sums.jsonl:3, data.template = 'chat': cannot render this row. Correct the row.

    Args:
        location: Such as a file with a line number; ``None`` adds nothing.
    """
    try:
        yield
    except ActError as error:
        if location is None:
            raise
        issues = [replace(issue, setting=f"{location}, {issue.setting}") for issue in error.issues]
        raise ActError(*issues) from error


def summarize_names(names: list[str], limit: int = 5) -> str:
    """The first ``limit`` of ``names``, and how many more there are.

    >>> summarize_names(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
