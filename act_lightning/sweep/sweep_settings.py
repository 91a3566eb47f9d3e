"""Config section ``sweep``, and the points of the sweep that it describes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ConfigIssue
from act_lightning.masks import ratio_issues
from act_lightning.merging import METHODS
from act_lightning.scorers import SCORERS
from act_lightning.scorers.scorer import Scorer
from act_lightning.transfer.selection import selection_issues
from act_lightning.transfer.settings import TransferSettings, scale_issues

ACT = "act"
TARGET = "target"
WITHOUT_MASK = tuple(name for name in METHODS if name != "fisher")
CONTROLS = ("random", *SCORERS)
SCALES = tuple(number / 10 for number in range(1, 10))
RATIOS = (*(number / 100 for number in range(1, 11)), *(number / 100 for number in range(15, 101, 5)))


@dataclass
class SweepSettings:
    """Which transfers are tried, and how the best is chosen.

    Attributes:
        scales: Values of λ; by default the paper's 0.1, 0.2 … 0.9. A list, or text such as ``0.2,0.4``.
        ratios: Values of p; by default the paper's: 1 % to 10 % by 1 %, 15 % to 100 % by 5 %. A list, or text.
        methods: The methods to compare; a list, or text such as ``act,ties``. ``act`` is the run's own transfer.
            ``task_arithmetic`` moves everything, without a mask. ``ties``, ``dare`` and other merging methods move
            everything too, and p is the density that they keep. ``random``, ``weight`` and other selections move, from
            each source, as many parameters as ``act`` does at the same p.
        sampler: ``grid`` tries every λ with every p. ``tpe`` and ``nsga2`` search between the least and the largest of
            both for the best trade of keep and recover.
        trials: How many points of each method ``tpe`` or ``nsga2`` tries.
        keep_within: The best point has the highest recover among those whose keep is at most so many points (of 100)
            below the target's.
        storage: Where Optuna keeps the points: a journal file, or SQLite (``sweep.db`` or ``sqlite:///sweep.db``); by
            default ``<default_root_dir>/sweep/journal.log``.
        fit: Whether each point is also fine-tuned, by a ``fit`` of its own in ``<default_root_dir>/sweep/points``.
        keep_models: Whether fine-tuned models of all points stay on the disk.
    """

    scales: list[float] | float | str = field(default_factory=lambda: list(SCALES))
    ratios: list[float] | float | str = field(default_factory=lambda: list(RATIOS))
    methods: list[str] | str = field(default_factory=lambda: [ACT])
    sampler: Literal["grid", "tpe", "nsga2"] = "grid"
    trials: int | None = None
    keep_within: float = 1.0
    storage: str | None = None
    fit: bool = False
    keep_models: bool = False

    def __post_init__(self) -> None:
        """Parse lists that were given as text."""
        self.tried_scales = _parse_numbers(self.scales)
        self.tried_ratios = _parse_numbers(self.ratios)
        methods = _split(self.methods) if isinstance(self.methods, str) else self.methods
        self.compared = tuple(dict.fromkeys(methods))

    @property
    def uses_masks(self) -> bool:
        """Whether any method selects channels."""
        return not {*self.compared} <= {*WITHOUT_MASK}

    def scorers(self, transfer: TransferSettings) -> dict[str, Scorer]:
        """The scorer of each method; other selections than ``act`` need that of ``act``, too."""
        others = {name: SCORERS[name]() for name in self.compared if name in SCORERS}
        own = transfer.scorer if self.uses_masks else None
        return others if own is None else {ACT: own, **others}

    def issues(self, transfer: TransferSettings, roles: Iterable[str]) -> list[ConfigIssue]:
        """Everything that is wrong with these settings, without looking at a model."""
        issues = []
        lists: dict[str, Sequence[float | str]] = {"scales": self.tried_scales, "ratios": self.tried_ratios}
        lists["methods"] = self.compared
        values = {"scales": self.scales, "ratios": self.ratios, "methods": self.methods}
        for name, parsed in lists.items():
            if not parsed:
                hint = "Leave it out for the default, or name what to try."
                issues.append(ConfigIssue(f"sweep.{name}", values[name], "must not be empty", hint))
        for name, example, check in (("scales", "0.2, 0.4", scale_issues), ("ratios", "0.01, 0.05", ratio_issues)):
            for value in lists[name]:
                if isinstance(value, str):
                    hint = f"Write a list such as [{example}]."
                    issues.append(ConfigIssue(f"sweep.{name}", value, "must be numbers", hint))
                else:
                    issues += check(value, f"sweep.{name}")
        known = (ACT, *WITHOUT_MASK, *CONTROLS)
        for method in self.compared:
            if method not in known:
                problem = f"must be one of {', '.join(known)}"
                issues.append(ConfigIssue("sweep.methods", method, problem, "Others are not built yet."))
        return issues + self._search_issues({*roles})

    def _search_issues(self, roles: set[str]) -> list[ConfigIssue]:
        issues = []
        if not 0 <= self.keep_within <= 100:
            hint = "Write points of accuracy, such as 1.0."
            issues.append(ConfigIssue("sweep.keep_within", self.keep_within, "must lie in [0, 100]", hint))
        if self.sampler == "grid" and self.trials is not None:
            problem, hint = "has no meaning where sampler is grid", "Leave it out, or choose tpe or nsga2."
            issues.append(ConfigIssue("sweep.trials", self.trials, problem, hint))
        if self.sampler != "grid" and (self.trials is None or self.trials < 1):
            problem = f"must say how many points {self.sampler} tries"
            issues.append(ConfigIssue("sweep.trials", self.trials, problem, "Write a number such as 40."))
        if missing := [role for role in ("keep", "recover") if role not in roles]:
            problem = f"must hold a set with role: {' and one with role: '.join(missing)}"
            hint = "Add what the target must not lose (keep) and what it must regain (recover)."
            issues.append(ConfigIssue("data.evaluations", sorted(roles), problem, hint))
        return issues

    def selection_issues(self, channels: ChannelInventory, transfer: TransferSettings) -> list[ConfigIssue]:
        """Values of p that select nothing, and patterns that match no module."""
        ratios = {f"sweep.ratios[{i}]": ratio for i, ratio in enumerate(self.tried_ratios) if isinstance(ratio, float)}
        return selection_issues(channels, transfer, ratios if self.uses_masks else {})


def _split(text: str) -> list[str]:
    """The words of a list that was given as text, such as ``[act, ties]`` or ``0.1,0.2``."""
    return text.strip("[]() ").replace(",", " ").split()


def _parse_numbers(value: Sequence[float] | float | str) -> list[float | str]:
    """Each number once, in order; a word that is no number stays text, which :meth:`SweepSettings.issues` reports."""
    words = _split(value) if isinstance(value, str) else [value] if isinstance(value, (int, float)) else value
    numbers: list[float | str] = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            numbers.append(word)
    return list(dict.fromkeys(numbers))


@dataclass(frozen=True)
class Point:
    """One transfer of a sweep.

    Attributes:
        method: ``act``, a merging method without a mask, a selection that ``act`` is compared with, or ``target``.
        scale: λ.
        ratio: p; of a merging method its density; 1 where the method ignores p.
        tuned: Whether the model is fine-tuned after the transfer.
    """

    method: str
    scale: float
    ratio: float
    tuned: bool = False

    @property
    def name(self) -> str:
        """The name of its folder.

        >>> Point("act", 0.4, 0.01).name
        'act_p0.01_l0.4'
        """
        return self.method if self.method == TARGET else f"{self.method}_p{self.ratio!r}_l{self.scale!r}"


UNMODIFIED = Point(TARGET, 0.0, 0.0)
"""The target itself."""


def has_ratio(method: str, transfer: TransferSettings) -> bool:
    """Whether a method depends on p.

    >>> [has_ratio(method, TransferSettings()) for method in ("act", "ties", "task_arithmetic", "random")]
    [True, True, False, True]
    """
    return has_density(method) if method in METHODS else transfer.selection != "all"


def has_density(method: str) -> bool:
    """Whether a merging method keeps a share of the task vectors, which is then p (as in the paper's Figure 5)."""
    return method in METHODS and "density" in {field.name for field in fields(METHODS[method])}  # type: ignore[arg-type]


def grid(settings: SweepSettings, transfer: TransferSettings) -> list[Point]:
    """Every λ with every p of every method, with points of the same mask next to each other."""
    return [
        Point(method, float(scale), float(ratio))
        for method in settings.compared
        for ratio in (settings.tried_ratios if has_ratio(method, transfer) else [1.0])
        for scale in settings.tried_scales
    ]


def count_points(settings: SweepSettings, transfer: TransferSettings) -> int:
    """How many points a sweep tries, without the target and those that depend on its result.

    >>> count_points(SweepSettings(methods="act,task_arithmetic"), TransferSettings())
    261
    """
    points = grid(settings, transfer)
    if settings.trials is None:
        return len(points)
    searched = sum(has_ratio(method, transfer) for method in settings.compared)
    return searched * settings.trials + sum(not has_ratio(point.method, transfer) for point in points)
