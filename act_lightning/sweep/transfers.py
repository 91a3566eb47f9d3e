"""From points to masks: scores are read once, and the masks of one p serve every λ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from act_lightning.channels import ChannelInventory
from act_lightning.masks import eligible_channels
from act_lightning.merging import merging_method
from act_lightning.scorers.registry import SCORERS
from act_lightning.sweep.points import Point, TransferOverride, as_large_as, has_density, moved_by
from act_lightning.sweep.settings import ACT, WITHOUT_MASK
from act_lightning.transfer.preparation import PreparedTransfer, TransferPlan, prepare
from act_lightning.transfer.settings import AbilitySource, TransferSettings

_KEPT = 4  # masks of several p in memory at a time
_HALVINGS = 12


@dataclass(frozen=True)
class SweepContext:
    """Where every point of a sweep begins.

    Attributes:
        sources: The run's sources.
        transfer: The run's own settings.
        channels: The channels of the target.
        scores: Folders of saved scores, by method.
        fisher: Folder of Fisher information.
        seed: Seed of random draws.
        digests: Digests under which the target's weights are known.
        target: The target's checkpoint.
    """

    sources: Sequence[AbilitySource]
    transfer: TransferSettings
    channels: ChannelInventory
    scores: Mapping[str, Path]
    fisher: Path
    seed: int
    digests: Sequence[str]
    target: Path


class Transfers:
    """Prepares the transfers of a sweep.

    Args:
        beginning: What all have in common.
    """

    def __init__(self, beginning: SweepContext) -> None:
        self._common = beginning
        self._selected = lru_cache(_KEPT)(self._select)
        self._alike = lru_cache(_KEPT)(self._as_large)

    def moved(self, point: Point) -> TransferOverride:
        """What a point says to a transfer.

        Raises:
            ActError: If scores are missing or foreign, or p selects nothing.
        """
        common = self._common
        if point.method == ACT or point.method in WITHOUT_MASK:
            return moved_by(point, common.transfer, common.sources)
        return self._alike(point.method, point.ratio).at(point.scale)

    def prepared(self, point: Point) -> PreparedTransfer:
        """The transfer of a point, ready to be injected.

        Raises:
            ActError: If scores are missing or foreign, or p selects nothing.
        """
        density = has_density(point.method)
        found = self._selected(point.method, 1.0 if density else point.ratio)
        method = merging_method(self.moved(point).settings.method) if density else found.method
        sources = [replace(source, scale=point.scale) for source in found.sources]
        return replace(found, sources=sources, method=method, scale=point.scale)

    def _select(self, method: str, ratio: float) -> PreparedTransfer:
        return self._prepare(method, self.moved(Point(method, 1.0, ratio)))

    def _prepare(self, method: str, moved: TransferOverride) -> PreparedTransfer:
        common = self._common
        plan = TransferPlan(
            moved.settings,
            moved.sources,
            common.channels,
            common.digests,
            common.seed,
            common.target,
            common.scores.get(method),
            common.fisher,
        )
        return prepare(plan)

    def _as_large(self, method: str, ratio: float) -> TransferOverride:
        """What another selection says that moves as many parameters from each source as ``act`` does.

        Where abilities are ranked apart, the joint of their masks grows with p, which is halved in on.
        """
        common, own = self._common, self._selected(ACT, ratio)
        allowed = common.channels.count_elements(eligible_channels(common.channels, common.transfer.exclude))
        budgets = {source.name: common.channels.count_elements(source.mask) for source in own.sources}
        # A quotient that was rounded down would allow one parameter less.
        most = {name: min(1.0, math.nextafter(budget / allowed, 1)) for name, budget in budgets.items()}
        point, scorer = Point(method, 1.0, ratio), SCORERS[method]() if method in SCORERS else None
        several = scorer is not None and scorer.needs_samples
        moved = as_large_as(point, most, common.transfer, common.sources, several)
        if not several or all(len(source.abilities) == 1 for source in common.sources):
            return moved
        low = {source.label: most[source.label] / len(source.abilities) for source in common.sources}
        for _ in range(_HALVINGS):
            tried = {name: (low[name] + most[name]) / 2 for name in low}
            found = self._prepare(method, as_large_as(point, tried, common.transfer, common.sources, several))
            for source in found.sources:
                fits = common.channels.count_elements(source.mask) <= budgets[source.name]
                (low if fits else most)[source.name] = tried[source.name]
        return as_large_as(point, low, common.transfer, common.sources, several)

    def share(self, point: Point) -> float:
        """The share of the target's parameters that a point moves; of a merging method with a density, the most."""
        found = self.prepared(point)
        return found.parameter_share * (point.ratio if has_density(point.method) else 1.0)
