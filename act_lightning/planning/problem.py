"""A problem of a plan: an error that would stop the run, a warning, or a note."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from act_lightning.errors import ConfigIssue

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """Something wrong or worth knowing.

    Attributes:
        level: ``error`` stops the run, ``warning`` deserves a thought, ``note`` is for information.
        setting: Where it stands in the config.
        message: What it is.
        remedy: What to do about it.
    """

    level: Level
    setting: str
    message: str
    remedy: str

    def __str__(self) -> str:
        """What it is and what to do about it, on one line."""
        return f"{self.message.removesuffix('.')}. {self.remedy}"


def from_issue(issue: ConfigIssue) -> Problem:
    """A issue as an error of a plan."""
    message = str(issue).removesuffix(f" {issue.hint}")
    return Problem("error", issue.setting, message, issue.hint)
