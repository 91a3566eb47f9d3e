"""What was found at the points of a sweep: which is best, which none beats, how methods compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from act_lightning.evaluation.intervals import Interval, McNemar, mean_of_shares, paired_test
from act_lightning.sweep.points import Point, has_density, has_ratio
from act_lightning.sweep.settings import ACT, CONTROLS, SweepSettings
from act_lightning.transfer.settings import TransferSettings

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
        return paired_test(target.right[name], self.right[name])

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


EQUAL_SCALE, EQUAL_SHARE, BEST = "equal λ", "equal parameters", "its best"
_DIGITS = 6
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Compared:
    """One row of the comparison of methods.

    Attributes:
        basis: Where the method is compared: ``equal λ``, ``equal parameters``, ``its best``, or several of these.
        outcome: What was found there.
    """

    basis: str
    outcome: Outcome


def best_point(outcomes: Sequence[Outcome], target: Outcome, within: float) -> Outcome | None:
    """The highest recover among points whose keep is at most ``within`` points below the target's.

    Of several the one that moves the smaller share; of those the higher keep, and then the smaller λ.

    Args:
        outcomes: What was found.
        target: What the target itself gave.
        within: Points, of 100.
    """
    least = target.keep - within / 100 - _ROUNDING
    return max((one for one in outcomes if one.keep >= least), key=_worth, default=None)


def _worth(one: Outcome) -> tuple[float, ...]:
    return one.recover, -one.share, one.keep, -one.point.scale


def pareto_front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The points that no other beats in keep or recover without losing in the other, by falling keep."""
    front: list[Outcome] = []
    for one in sorted(outcomes, key=lambda one: (-one.keep, -one.recover, one.share)):
        if not front or one.recover > front[-1].recover:
            front.append(one)
    return front


def reference_of(outcomes: Sequence[Outcome], target: Outcome, settings: SweepSettings) -> Outcome:
    """The best point of ``act``, or else of the first method; without one that keeps enough, that which keeps most."""
    method = ACT if ACT in settings.compared else settings.compared[0]
    its = [one for one in outcomes if one.point.method == method]
    return best_point(its, target, settings.keep_within) or max(its, key=lambda one: (one.keep, *_worth(one)))


def equal_points(
    reference: Outcome, settings: SweepSettings, transfer: TransferSettings
) -> dict[str, dict[str, Point]]:
    """Where other methods are compared with the reference: by method, by basis.

    At equal λ p is also the same. At equal parameters λ is also the same, and a density is the share that the reference
    moves; what has no density and no mask moves everything, and cannot be compared so.

    Args:
        reference: What the others are compared with.
        settings: Section ``sweep``.
        transfer: The run's own settings.
    """
    at, found = reference.point, {}
    for method in settings.compared:
        if method == at.method:
            continue
        points = {EQUAL_SCALE: Point(method, at.scale, at.ratio if has_ratio(method, transfer) else 1.0, at.tuned)}
        if method in CONTROLS and at.method == ACT:
            points[EQUAL_SHARE] = points[EQUAL_SCALE]  # as many parameters, by construction
        if has_density(method):
            points[EQUAL_SHARE] = Point(method, at.scale, max(10**-_DIGITS, round(reference.share, _DIGITS)), at.tuned)
        found[method] = points
    return found


def comparison(
    outcomes: Sequence[Outcome], target: Outcome, settings: SweepSettings, transfer: TransferSettings
) -> list[Compared]:
    """The reference, and every other method at equal λ, at an equal share of parameters, and at its best.

    Args:
        outcomes: What was found.
        target: What the target itself gave.
        settings: Section ``sweep``.
        transfer: The run's own settings.
    """
    known, reference = {one.point: one for one in outcomes}, reference_of(outcomes, target, settings)
    rows = [Compared(BEST, reference)]
    for method, points in equal_points(reference, settings, transfer).items():
        best = best_point([one for one in outcomes if one.point.method == method], target, settings.keep_within)
        bases: dict[Point, list[str]] = {}
        for basis, point in (points | ({} if best is None else {BEST: best.point})).items():
            bases.setdefault(point, []).append(basis)
        rows += [Compared(", ".join(its), known[point]) for point, its in bases.items() if point in known]
    return rows
