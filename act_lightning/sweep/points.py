"""The points of a sweep: a method with its λ and p, and what each says to a transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from act_lightning.merging import METHODS
from act_lightning.sweep.settings import ACT, TARGET, SweepSettings
from act_lightning.transfer.settings import AbilitySource, TransferSettings

_ALL = 1.0


@dataclass(frozen=True)
class Point:
    """One transfer of a sweep.

    Attributes:
        method: ``act``, a merging method without a mask, a selection that ``act`` is compared with, or ``target``.
        scale: λ.
        ratio: p; of a merging method its density, and 1 where p plays no part.
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


UNTOUCHED = Point(TARGET, 0.0, 0.0)
"""The target itself."""


def has_ratio(method: str, transfer: TransferSettings) -> bool:
    """Whether p plays a part in a method.

    >>> [has_ratio(method, TransferSettings()) for method in ("act", "ties", "task_arithmetic", "random")]
    [True, True, False, True]

    Args:
        method: Its name.
        transfer: The run's own settings.
    """
    return has_density(method) if method in METHODS else transfer.selection != "all"


def has_density(method: str) -> bool:
    """Whether a merging method keeps a share of the task vectors, which is then p (as in the paper's Figure 5)."""
    return method in METHODS and "density" in {field.name for field in fields(METHODS[method])}  # type: ignore[arg-type]


def grid(settings: SweepSettings, transfer: TransferSettings) -> list[Point]:
    """Every λ with every p of every method, those of one mask side by side.

    Args:
        settings: Section ``sweep``, without issues.
        transfer: The run's own settings.
    """
    return [
        Point(method, float(scale), float(ratio))
        for method in settings.compared
        for ratio in (settings.tried_ratios if has_ratio(method, transfer) else [_ALL])
        for scale in settings.tried_scales
    ]


def count_points(settings: SweepSettings, transfer: TransferSettings) -> int:
    """How many points a sweep tries, without the target and those that only the result can name.

    >>> count_points(SweepSettings(methods="act,task_arithmetic"), TransferSettings())
    261

    Args:
        settings: Section ``sweep``, without issues.
        transfer: The run's own settings.
    """
    points = grid(settings, transfer)
    if settings.trials is None:
        return len(points)
    searched = sum(has_ratio(method, transfer) for method in settings.compared)
    return searched * settings.trials + sum(not has_ratio(point.method, transfer) for point in points)


@dataclass(frozen=True)
class TransferOverride:
    """What a point says to a transfer, and to the config of a run.

    Attributes:
        settings: Of the transfer.
        sources: The ability models.
    """

    settings: TransferSettings
    sources: Sequence[AbilitySource]

    def at(self, scale: float) -> TransferOverride:
        """The same with another λ."""
        return replace(self, settings=replace(self.settings, scale=scale))

    def into(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """A run's config with this transfer in place of its own.

        Args:
            recipe: The config, as plain dicts and lists.
        """
        given = self.settings
        own = {"ratio": float(given.ratio), "scale": given.scale, "share": given.share, "scope": given.scope}
        transfer = recipe.get("transfer", {}) | own | {"exclude": list(given.exclude)}
        if isinstance(given.selection, str):
            transfer["selection"] = given.selection  # any other is the run's own
        if not isinstance(given.method, str):
            kind = type(given.method)
            settings = {field.name: getattr(given.method, field.name) for field in fields(given.method)}  # type: ignore[arg-type]
            transfer["method"] = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": settings}
        else:
            transfer["method"] = given.method
        sources = [_source(one, source) for one, source in zip(recipe["profile"]["sources"], self.sources, strict=True)]
        return {**recipe, "transfer": transfer, "profile": recipe["profile"] | {"sources": sources}}


def _source(given: Mapping[str, Any], source: AbilitySource) -> dict[str, Any]:
    """A source of a config with the abilities and the p of another."""
    kept = {key: value for key, value in given.items() if key not in ("scale", "ratio")}
    ratio = {} if source.ratio is None else {"ratio": float(source.ratio)}
    return kept | {"abilities": list(source.abilities)} | ratio


def moved_by(point: Point, transfer: TransferSettings, sources: Sequence[AbilitySource]) -> TransferOverride:
    """What a point says, unless it must have as many parameters as another: its own λ and p for all sources.

    Args:
        point: Of ``act``, or of a merging method.
        transfer: The run's own settings.
        sources: The run's own sources, whose λ and p give way to those of the point.
    """
    plain = [replace(source, scale=None, ratio=None) for source in sources]
    if point.method == ACT:
        return TransferOverride(replace(transfer, scale=point.scale, ratio=point.ratio), plain)
    density = {"density": point.ratio} if has_density(point.method) else {}
    everything = TransferSettings(scale=point.scale, selection="all", method=METHODS[point.method](**density))
    return TransferOverride(everything, plain)


def as_large_as(
    point: Point,
    ratios: Mapping[str, float],
    transfer: TransferSettings,
    sources: Sequence[AbilitySource],
    several: bool = False,
) -> TransferOverride:
    """What a point of another selection says that moves a share of the parameters from each source.

    Args:
        point: The point.
        ratios: The share that one mask has, by source.
        transfer: The run's own settings.
        sources: The run's own sources.
        several: Whether abilities are ranked apart; otherwise one mask is all of them.
    """
    chosen = [
        replace(
            source,
            scale=None,
            ratio=ratios[source.label],
            abilities=list(source.abilities)[: None if several else 1],
        )
        for source in sources
    ]
    settings = replace(transfer, scale=point.scale, ratio=max(ratios.values()), share="parameters", scope="global")
    return TransferOverride(replace(settings, selection=point.method, method="task_arithmetic"), chosen)
