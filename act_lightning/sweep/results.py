"""What was found at the points of a sweep: the best point, the Pareto front, and the comparison of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isclose
from typing import Any

from act_lightning.evaluation.intervals import Interval, McNemar, paired_test
from act_lightning.evaluation.tables import ItemScores
from act_lightning.sweep.sweep_settings import ACT, CONTROLS, Point, SweepSettings, has_density, has_ratio
from act_lightning.transfer.injection import Rounding
from act_lightning.transfer.settings import TransferSettings

_NO_ROUNDING = Rounding()


@dataclass(frozen=True)
class Outcome:
    """A point that was evaluated.

    Attributes:
        roles: ``keep`` or ``recover`` by evaluation set.
        scores: Which items were answered correctly.
        share: Share of the target's parameters that moved; with a density, an upper bound.
        seconds: How long each part took: ``selecting``, ``applying``, ``evaluating``, ``reverting``, ``fitting``.
        rounding: What rounding did to the values that the transfer gave.
    """

    point: Point
    roles: Mapping[str, str]
    scores: ItemScores
    share: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    rounding: Rounding = _NO_ROUNDING

    def mean(self, role: str) -> Interval:
        """The mean accuracy of the sets of a role, all with the same weight as in the paper, with its interval."""
        return self.scores.mean(self.names(role))

    @property
    def keep(self) -> float:
        """The mean accuracy that the target must not lose."""
        return self.mean("keep")[0]

    @property
    def recover(self) -> float:
        """The mean accuracy that the target must regain."""
        return self.mean("recover")[0]

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, strings and numbers."""
        return {
            "point": asdict(self.point),
            "roles": dict(self.roles),
            "right": dict(self.scores.digits),
            "share": self.share,
            "seconds": dict(self.seconds),
            "rounding": list(self.rounding),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`to_json`.

        >>> outcome = Outcome(Point("act", 0.4, 0.01), {"a": "keep"}, ItemScores({"a": "0110"}), 0.05)
        >>> Outcome.from_json(outcome.to_json()) == outcome, outcome.keep
        (True, 0.5)
        """
        scores = ItemScores(values["right"])
        rounding = Rounding(*values.get("rounding", ()))  # which earlier versions did not record
        return cls(Point(**values["point"]), values["roles"], scores, values["share"], values["seconds"], rounding)

    def names(self, role: str) -> list[str]:
        """The evaluation sets of a role."""
        return [name for name in self.roles if self.roles[name] == role]

    def against(self, other: Outcome, role: str) -> McNemar:
        """McNemar's test against another model on the items of all sets of a role."""
        digits = ("".join(each.scores.digits[name] for name in self.names(role)) for each in (other, self))
        return paired_test(*digits)


def role_label(roles: Mapping[str, str], role: str) -> str:
    """The evaluation set of a role by name, or how many there are.

    >>> roles = {"sums": "keep", "words": "recover", "dates": "recover"}
    >>> role_label(roles, "keep"), role_label(roles, "recover")
    ('sums (keep)', 'recover (mean of 2 sets)')
    """
    names = [name for name in roles if roles[name] == role]
    return f"{names[0]} ({role})" if len(names) == 1 else f"{role} (mean of {len(names)} sets)"


EQUAL_SCALE, EQUAL_SHARE, BEST = "equal λ", "equal parameters", "its best"
_DENSITY_DIGITS = 6
_EQUAL_WITHIN = 0.02  # where no choice of channels comes closer, another selection is not called equal


@dataclass(frozen=True)
class MethodResult:
    """One row of the comparison of methods: the outcome, and at which basis, or bases, it is compared."""

    basis: str
    outcome: Outcome


def best_point(outcomes: Sequence[Outcome], target: Outcome, within: float) -> Outcome | None:
    """The highest recover among points whose keep is at most ``within`` points (of 100) below the target's.

    Among equals the point that moves the smaller share; then the one with the higher keep, then the smaller λ.
    """
    threshold = target.keep - within / 100 - 1e-9  # a margin for rounding
    return max((outcome for outcome in outcomes if outcome.keep >= threshold), key=_rank, default=None)


def _rank(outcome: Outcome) -> tuple[float, ...]:
    return outcome.recover, -outcome.share, outcome.keep, -outcome.point.scale


def pareto_front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The points that no other beats in keep or recover without losing in the other, by falling keep."""
    front: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda outcome: (-outcome.keep, -outcome.recover, outcome.share)):
        if not front or outcome.recover > front[-1].recover:
            front.append(outcome)
    return front


def reference_outcome(outcomes: Sequence[Outcome], target: Outcome, settings: SweepSettings) -> Outcome:
    """The best point of ``act``, or else of the first method; if none keeps enough, the one that keeps most."""
    method = ACT if ACT in settings.compared else settings.compared[0]
    of_method = [outcome for outcome in outcomes if outcome.point.method == method]
    best = best_point(of_method, target, settings.keep_within)
    return best or max(of_method, key=lambda outcome: (outcome.keep, *_rank(outcome)))


def equal_points(
    reference: Outcome, settings: SweepSettings, transfer: TransferSettings
) -> dict[str, dict[str, Point]]:
    """Where other methods are compared with the reference: by method, by basis.

    At equal λ, p is also the same. At equal parameters, λ is also the same, and a density is the share that the
    reference moves; a method with neither density nor mask moves everything, and cannot be compared on this basis.
    """
    point, by_method = reference.point, {}
    for method in settings.compared:
        if method == point.method:
            continue
        ratio = point.ratio if has_ratio(method, transfer) else 1.0
        points = {EQUAL_SCALE: Point(method, point.scale, ratio, point.tuned)}
        if method in CONTROLS and point.method == ACT:
            points[EQUAL_SHARE] = points[EQUAL_SCALE]  # it moves as many parameters by construction
        if has_density(method):
            density = max(10**-_DENSITY_DIGITS, round(reference.share, _DENSITY_DIGITS))
            points[EQUAL_SHARE] = Point(method, point.scale, density, point.tuned)
        by_method[method] = points
    return by_method


def compare_methods(
    outcomes: Sequence[Outcome], target: Outcome, settings: SweepSettings, transfer: TransferSettings
) -> list[MethodResult]:
    """The reference, and every other method at equal λ, at an equal share of parameters, and at its best."""
    by_point = {outcome.point: outcome for outcome in outcomes}
    reference = reference_outcome(outcomes, target, settings)
    rows = [MethodResult(BEST, reference)]
    for method, points in equal_points(reference, settings, transfer).items():
        of_method = [outcome for outcome in outcomes if outcome.point.method == method]
        best = best_point(of_method, target, settings.keep_within)
        bases: dict[Point, list[str]] = {}
        for basis, point in (points | ({} if best is None else {BEST: best.point})).items():
            bases.setdefault(point, []).append(basis)
        for point, names in bases.items():
            if (outcome := by_point.get(point)) is not None:
                equal = isclose(outcome.share, reference.share, rel_tol=_EQUAL_WITHIN)
                names = [name for name in names if name != EQUAL_SHARE or equal]
                rows.append(MethodResult(", ".join(names), outcome))
    return rows
