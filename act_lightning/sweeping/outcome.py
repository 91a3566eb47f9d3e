"""What was found at a point of a sweep, and how it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from act_lightning.evaluation import McNemar, mean_of_shares
from act_lightning.evaluation.comparing import difference
from act_lightning.evaluation.intervals import Interval
from act_lightning.sweeping.points import Point

ROLES = ("keep", "recover")


@dataclass(frozen=True)
class Outcome:
    """A point that was evaluated.

    Attributes:
        point: The point.
        roles: ``keep`` or ``recover`` by evaluation set.
        right: A digit for each item in its order, 1 where it was answered rightly, by evaluation set.
        share: Share of the target's parameters that moved; with a density, at most so many.
        seconds: How long each part took: ``selecting``, ``applying``, ``evaluating``, ``reverting``, ``fitting``.
    """

    point: Point
    roles: Mapping[str, str]
    right: Mapping[str, str]
    share: float
    seconds: Mapping[str, float] = field(default_factory=dict)

    def counts(self, name: str) -> tuple[int, int]:
        """Right answers in a set, and its items."""
        return self.right[name].count("1"), len(self.right[name])

    def mean(self, role: str) -> Interval:
        """The mean accuracy of the sets of a role, each counted alike as in the paper, with its 95 % interval."""
        return mean_of_shares([self.counts(name) for name, its in self.roles.items() if its == role])

    @property
    def keep(self) -> float:
        """The mean accuracy that the target must not lose."""
        return self.mean("keep")[0]

    @property
    def recover(self) -> float:
        """The mean accuracy that the target must regain."""
        return self.mean("recover")[0]

    @property
    def overhead(self) -> float:
        """Seconds that selecting, applying and reverting took, as a share of those of evaluating."""
        spent = sum(self.seconds.get(part, 0.0) for part in ("selecting", "applying", "reverting"))
        return spent / self.seconds["evaluating"] if self.seconds.get("evaluating") else 0.0

    def against(self, target: Outcome, name: str) -> McNemar:
        """McNemar's test against the target on the items of a set."""
        before, after = ([digit == "1" for digit in one.right[name]] for one in (target, self))
        return difference(before, after).test

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, strings and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`to_json`.

        >>> one = Outcome(Point("act", 0.4, 0.01), {"a": "keep"}, {"a": "0110"}, 0.05)
        >>> Outcome.from_json(one.to_json()) == one, one.keep
        (True, 0.5)
        """
        return cls(**{**values, "point": Point(**values["point"])})
