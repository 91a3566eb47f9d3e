"""What a user may say about a sweep: section ``sweep``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ConfigIssue
from act_lightning.masks import ratio_issues
from act_lightning.merging import METHODS
from act_lightning.scorers.registry import SCORERS
from act_lightning.scorers.scorer import Scorer
from act_lightning.transfer.selection import selection_issues
from act_lightning.transfer.settings import TransferSettings, scale_issues

ACT = "act"
TARGET = "target"
TASK_ARITHMETIC = "task_arithmetic"
WITHOUT_MASK = tuple(name for name in METHODS if name != "fisher")
CONTROLS = ("random", *SCORERS)
SCALES = tuple(number / 10 for number in range(1, 10))
RATIOS = (*(number / 100 for number in range(1, 11)), *(number / 100 for number in range(15, 101, 5)))
_ROLES = ("keep", "recover")
_POINTS = 100
_SQLITE = (".db", ".sqlite", ".sqlite3")


@dataclass
class SweepSettings:
    """Which transfers are tried, and how the best is chosen.

    Attributes:
        scales: Values of λ; by default the paper's 0.1, 0.2 … 0.9. A list, or text such as ``0.2,0.4``.
        ratios: Values of p; by default the paper's: 1 % to 10 % by 1 %, 15 % to 100 % by 5 %. A list, or text.
        methods: What is compared; a list, or text such as ``act,ties``. ``act`` is the run's own transfer.
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
        """Read lists that were given as text."""
        self.tried_scales, self.tried_ratios = _numbers(self.scales), _numbers(self.ratios)
        self.compared = tuple(dict.fromkeys(_words(self.methods)))

    def scorers(self, transfer: TransferSettings) -> dict[str, Scorer]:
        """What channels are ranked by, by method; other selections than ``act`` need its scores, too.

        Args:
            transfer: The run's own settings.
        """
        others = {name: SCORERS[name]() for name in self.compared if name in SCORERS}
        own = transfer.scorer if self.uses_masks else None
        return others if own is None else {ACT: own, **others}

    def uses_scores(self, transfer: TransferSettings) -> bool:
        """Whether any method selects by scores.

        Args:
            transfer: The run's own settings.
        """
        return bool(self.scorers(transfer))

    def issues(self, transfer: TransferSettings, roles: Iterable[str]) -> list[ConfigIssue]:
        """Everything that is wrong with these settings, without looking at a model.

        Args:
            transfer: The run's own settings.
            roles: The role of each evaluation set.
        """
        found = [issue for name in ("scales", "ratios", "methods") for issue in _empty_issue(name, getattr(self, name))]
        found += [issue for scale in self.tried_scales for issue in _scale_issues(scale)]
        found += [issue for ratio in self.tried_ratios for issue in _ratio_issues(ratio)]
        found += [issue for method in self.compared for issue in _method_issues(method)]
        if not 0 <= self.keep_within <= _POINTS:
            problem = f"must lie in [0, {_POINTS}]"
            found.append(
                ConfigIssue("sweep.keep_within", self.keep_within, problem, "Write points of accuracy, such as 1.0.")
            )
        return found + self._search_issues() + _role_issues(set(roles))

    def selection_issues(self, channels: ChannelInventory, transfer: TransferSettings) -> list[ConfigIssue]:
        """Values of p that select nothing, and patterns that match no module.

        Args:
            channels: The channels of the target.
            transfer: The run's own settings.
        """
        ratios = {f"sweep.ratios[{i}]": ratio for i, ratio in enumerate(self.tried_ratios) if isinstance(ratio, float)}
        return selection_issues(channels, transfer, ratios if self.uses_masks else {})

    @property
    def uses_masks(self) -> bool:
        """Whether any method selects channels."""
        return not {*self.compared} <= {*WITHOUT_MASK}

    def _search_issues(self) -> list[ConfigIssue]:
        if self.sampler == "grid":
            problem, hint = "has no meaning where sampler is grid", "Leave it out, or choose tpe or nsga2."
            return [] if self.trials is None else [ConfigIssue("sweep.trials", self.trials, problem, hint)]
        if self.trials is not None and self.trials >= 1:
            return []
        problem = f"must say how many points {self.sampler} tries"
        return [ConfigIssue("sweep.trials", self.trials, problem, "Write a number such as 40.")]


def is_sqlite(place: str) -> bool:
    """Whether a storage is SQLite, and no journal.

    >>> is_sqlite("runs/sweep.db"), is_sqlite("runs/journal.log")
    (True, False)
    """
    return place.startswith("sqlite:") or place.endswith(_SQLITE)


def splits(text: str) -> list[str]:
    """The words of a list that was given as text.

    >>> splits("[act, ties]"), splits("0.1,0.2")
    (['act', 'ties'], ['0.1', '0.2'])
    """
    return [word for word in text.strip("[]() ").replace(",", " ").split() if word]


def _words(given: Sequence[str] | str) -> list[str]:
    return splits(given) if isinstance(given, str) else list(given)


def _numbers(given: Sequence[float] | float | str) -> list[float | str]:
    """Each number once, in their order; what is no number stays text, to be refused with everything else."""
    words = splits(given) if isinstance(given, str) else [given] if isinstance(given, (int, float)) else given
    return list(dict.fromkeys(_number(word) for word in words))


def _number(word: float | str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _empty_issue(name: str, given: Sequence[object] | float | str) -> list[ConfigIssue]:
    if isinstance(given, (int, float)) or (splits(given) if isinstance(given, str) else given):
        return []
    return [
        ConfigIssue(f"sweep.{name}", given, "must not be empty", "Leave it out for the default, or name what to try.")
    ]


def _scale_issues(scale: float | str) -> list[ConfigIssue]:
    if isinstance(scale, str):
        return [ConfigIssue("sweep.scales", scale, "must be numbers", "Write a list such as [0.2, 0.4].")]
    return scale_issues(scale, "sweep.scales")


def _ratio_issues(ratio: float | str) -> list[ConfigIssue]:
    if isinstance(ratio, str):
        return [ConfigIssue("sweep.ratios", ratio, "must be numbers", "Write a list such as [0.01, 0.05].")]
    return ratio_issues(ratio, "sweep.ratios")


def _method_issues(method: str) -> list[ConfigIssue]:
    known = (ACT, *WITHOUT_MASK, *CONTROLS)
    if method in known:
        return []
    return [ConfigIssue("sweep.methods", method, f"must be one of {', '.join(known)}", "Others are not built yet.")]


def _role_issues(roles: set[str]) -> list[ConfigIssue]:
    missing = [role for role in _ROLES if role not in roles]
    if not missing:
        return []
    problem = f"must hold a set with role: {' and one with role: '.join(missing)}"
    hint = "Add what the target must not lose (keep) and what it must regain (recover)."
    return [ConfigIssue("data.evaluations", sorted(roles), problem, hint)]
