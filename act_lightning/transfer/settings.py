"""The settings of a transfer, and what can be wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from act_lightning.checkpoints.files import name_issues
from act_lightning.defaults import RATIO, SCALE
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.masks import ratio_issues
from act_lightning.merging.method import MergingMethod
from act_lightning.merging.registry import merging_method
from act_lightning.scorers.registry import scorer_of
from act_lightning.scorers.scorer import Scorer

Share = Literal["channels", "parameters"]
Scope = Literal["global", "module"]


@dataclass(frozen=True)
class TransferSettings:
    """How channels are chosen and moved (paper §4, https://arxiv.org/abs/2601.09398).

    Attributes:
        ratio: p, the share that one ability's mask selects, in (0, 1].
        share: What ``ratio`` is a share of: channels, as in the paper, or parameters, for comparisons at equal cost.
        scale: λ, the strength of the transfer.
        selection: How channels are ranked: name of a scorer (``activation`` is the paper's), ``random`` or ``all``; or
            a scorer with settings of its own.
        scope: Whether channels are ranked across the whole model, as in the paper, or within every module.
        exclude: fnmatch patterns on full module names; excluded channels are neither selected nor counted.
        method: Name of a merging method, or one with settings of its own.
    """

    ratio: float | Fraction = RATIO
    share: Share = "channels"
    scale: float = SCALE
    selection: str | Scorer = "activation"
    scope: Scope = "global"
    exclude: Sequence[str] = ()
    method: str | MergingMethod = "task_arithmetic"

    @property
    def scorer(self) -> Scorer | None:
        """What channels are ranked by; ``None`` where no scores are needed, or the selection is refused."""
        return None if self._selection_issues() else scorer_of(self.selection)

    @property
    def selection_name(self) -> str:
        """How the selection is told to a person: its name, or the scorer with its settings."""
        return self.selection if isinstance(self.selection, str) else repr(self.selection)

    @property
    def needs_scores(self) -> bool:
        """Whether this selection ranks channels by saved scores."""
        return self.scorer is not None

    @property
    def needs_fisher(self) -> bool:
        """Whether this method weighs by Fisher information."""
        return not self._method_issues() and merging_method(self.method).needs_importance

    def issues(self, prefix: str = "transfer") -> list[ConfigIssue]:
        """What is wrong with these settings, without looking at a model."""
        found = ratio_issues(self.ratio, f"{prefix}.ratio") + scale_issues(self.scale, f"{prefix}.scale")
        for name, value, allowed in (
            ("share", self.share, get_args(Share)),
            ("scope", self.scope, get_args(Scope)),
        ):
            if value not in allowed:
                problem = f"must be one of {', '.join(allowed)}"
                found.append(ConfigIssue(f"{prefix}.{name}", value, problem, "Choose one of these."))
        if self.share == "parameters" and self.scope == "module":
            problem = "cannot be combined with scope: module"
            found.append(ConfigIssue(f"{prefix}.share", self.share, problem, "Use share: channels, or scope: global."))
        return found + self._selection_issues() + self._method_issues()

    def _selection_issues(self) -> list[ConfigIssue]:
        try:
            scorer = scorer_of(self.selection)
        except ActError as error:
            return list(error.issues)
        return [] if scorer is None else name_issues(scorer.label, "transfer.selection")

    def _method_issues(self) -> list[ConfigIssue]:
        try:
            merging_method(self.method)
        except ActError as error:
            return list(error.issues)
        return []


def weight_issues(settings: TransferSettings, scales: Mapping[str, float | None]) -> list[ConfigIssue]:
    """What keeps the sources' scales from being weights relative to λ, for a method that votes or averages.

    Args:
        settings: The settings of the transfer, without issues.
        scales: λ_m of each source by the setting that says so; ``None`` where it is λ.
    """
    method, own = merging_method(settings.method), {name: scale for name, scale in scales.items() if scale is not None}
    if method.weighs_each:
        return []
    if settings.scale == 0:
        problem = "must be transfer.scale times a weight, and that scale is 0"
        return [
            ConfigIssue(name, scale, problem, "Leave it out, or choose another scale.") for name, scale in own.items()
        ]
    if method.negative_weights:
        return []
    problem = f"must have the sign of transfer.scale, {settings.scale:g}, for {type(method).__name__} averages"
    return [
        ConfigIssue(name, scale, problem, "Turn its sign.") for name, scale in own.items() if scale / settings.scale < 0
    ]


def scale_issues(scale: float, setting: str) -> list[ConfigIssue]:
    """What is wrong with a scaling factor: it must be a finite number."""
    if isinstance(scale, bool) or not math.isfinite(scale):
        return [ConfigIssue(setting, scale, "must be a finite number", "Write a number such as 0.4.")]
    return []
