"""From points to transfers: scores are read once, and the masks of one p serve every λ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from act_lightning.masks import eligible_channels
from act_lightning.merging import METHODS, merging_method
from act_lightning.scorers import SCORERS
from act_lightning.sweep.sweep_settings import ACT, WITHOUT_MASK, Point, has_density
from act_lightning.transfer.injection import Rounding
from act_lightning.transfer.preparation import PreparedTransfer, TransferPlan, prepare
from act_lightning.transfer.settings import AbilitySource, TransferSettings
from act_lightning.transfer.summary import describe_transfer, mask_issues, rounding_issues

_CACHED_RATIOS = 4  # masks of several p in memory at a time
_BISECTIONS = 12


def read_recipe(text: str) -> dict[str, Any]:
    """A run's config, given as YAML, without the keys that only a sweep understands."""
    config: dict[str, Any] = yaml.safe_load(text)
    return {key: value for key, value in config.items() if key not in ("sweep", "config", "ckpt_path", "weights_only")}


@dataclass(frozen=True)
class TransferOverride:
    """Settings of the transfer and sources of a point, which replace those of the run."""

    settings: TransferSettings
    sources: Sequence[AbilitySource]

    def apply_to(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The config of a run, as plain dicts and lists, with this transfer in place of its own."""
        settings, method = self.settings, self.settings.method
        transfer = recipe.get("transfer", {}) | {
            "ratio": float(settings.ratio),
            "scale": settings.scale,
            "share": settings.share,
            "scope": settings.scope,
            "include": list(settings.include),
            "exclude": list(settings.exclude),
        }
        if isinstance(settings.selection, str):
            transfer["selection"] = settings.selection  # any other is the run's own
        if isinstance(method, str):
            transfer["method"] = method
        else:
            arguments = {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]
            class_path = f"{type(method).__module__}.{type(method).__qualname__}"
            transfer["method"] = {"class_path": class_path, "init_args": arguments}
        sources = []
        for config, source in zip(recipe["profile"]["sources"], self.sources, strict=True):
            own = {key: value for key, value in config.items() if key not in ("scale", "ratio")}
            ratio = {} if source.ratio is None else {"ratio": float(source.ratio)}
            sources.append(own | {"abilities": list(source.abilities)} | ratio)
        return {**recipe, "transfer": transfer, "profile": recipe["profile"] | {"sources": sources}}


class Transfers:
    """Prepares the transfers of a sweep."""

    def __init__(self, plan: TransferPlan, score_folders: Mapping[str, Path]) -> None:
        self._plan = plan
        self._score_folders = score_folders
        self._select = lru_cache(_CACHED_RATIOS)(
            lambda method, ratio: self._prepare(method, self.override(Point(method, 1.0, ratio)))
        )
        self._sized_like_act = lru_cache(_CACHED_RATIOS)(self._sized_like_act_uncached)

    def override(self, point: Point) -> TransferOverride:
        """Settings and sources of a point: its own λ and p hold for all sources.

        Raises:
            ActError: If scores are missing or of other weights, or p selects nothing.
        """
        if point.method != ACT and point.method not in WITHOUT_MASK:
            sized = self._sized_like_act(point.method, point.ratio)
            return replace(sized, settings=replace(sized.settings, scale=point.scale))
        sources = [replace(source, scale=None, ratio=None) for source in self._plan.sources]
        if point.method == ACT:
            return TransferOverride(replace(self._plan.settings, scale=point.scale, ratio=point.ratio), sources)
        density = {"density": point.ratio} if has_density(point.method) else {}
        settings = TransferSettings(scale=point.scale, selection="all", method=METHODS[point.method](**density))
        return TransferOverride(settings, sources)

    def prepare(self, point: Point) -> PreparedTransfer:
        """The transfer of a point, ready to be injected.

        Raises:
            ActError: If scores are missing or of other weights, or p selects nothing.
        """
        density = has_density(point.method)
        selected = self._select(point.method, 1.0 if density else point.ratio)
        method = merging_method(self.override(point).settings.method) if density else selected.method
        sources = [replace(source, scale=point.scale) for source in selected.sources]
        return replace(selected, sources=sources, method=method, scale=point.scale)

    def parameter_share(self, point: Point) -> float:
        """The share of the target's parameters that a point moves; with a density, the most that it may move."""
        return self.prepare(point).parameter_share * (point.ratio if has_density(point.method) else 1.0)

    def describe(self, point: Point, rounding: Rounding) -> list[str]:
        """What a point selects by type of module, and warnings of that; nothing of methods without a mask.

        Raises:
            ActError: As :meth:`prepare`.
        """
        if point.method in WITHOUT_MASK or not point.scale:
            return []
        override, prepared = self.override(point), self.prepare(point)
        issues = mask_issues(self._plan_of(point.method, override), prepared)
        issues += rounding_issues(rounding) if rounding.values else []
        sources = {name: {**source, "scale": point.scale} for name, source in prepared.report["sources"].items()}
        lines = [f"{point.method}: {describe_transfer({**prepared.report, 'sources': sources})}"]
        return lines + [f"{issue.level}: {point.method}: {issue}" for issue in issues]

    def _prepare(self, method: str, override: TransferOverride) -> PreparedTransfer:
        return prepare(self._plan_of(method, override))

    def _plan_of(self, method: str, override: TransferOverride) -> TransferPlan:
        scores = self._score_folders.get(method)
        return replace(self._plan, settings=override.settings, sources=override.sources, scores=scores)

    def _sized_like_act_uncached(self, method: str, ratio: float) -> TransferOverride:
        """Another selection that moves as many parameters from each source as ``act`` does.

        Where abilities are ranked separately, the union of their masks grows with p, which is found by bisection.
        """
        channels = self._plan.inventory
        settings = self._plan.settings
        eligible = channels.count_elements(eligible_channels(channels, settings.include, settings.exclude))
        budgets = {source.name: channels.count_elements(source.mask) for source in self._select(ACT, ratio).sources}
        # A quotient that was rounded down would allow one parameter less.
        high = {name: min(1.0, math.nextafter(budget / eligible, 1)) for name, budget in budgets.items()}
        ranks_abilities = method in SCORERS and SCORERS[method]().needs_samples
        if not ranks_abilities or all(len(source.abilities) == 1 for source in self._plan.sources):
            return self._with_parameter_shares(method, high, ranks_abilities)
        low = {source.label: high[source.label] / len(source.abilities) for source in self._plan.sources}
        for _ in range(_BISECTIONS):
            middle = {name: (low[name] + high[name]) / 2 for name in low}
            prepared = self._prepare(method, self._with_parameter_shares(method, middle, ranks_abilities))
            for source in prepared.sources:
                fits = channels.count_elements(source.mask) <= budgets[source.name]
                (low if fits else high)[source.name] = middle[source.name]
        return self._with_parameter_shares(method, low, ranks_abilities)

    def _with_parameter_shares(
        self, method: str, shares: Mapping[str, float], ranks_abilities: bool
    ) -> TransferOverride:
        """A selection by ``method`` at λ = 1 whose masks have these shares of the parameters, by source.

        Without scores of each ability, one mask stands for all abilities of a source.
        """
        sources = []
        for source in self._plan.sources:
            abilities = list(source.abilities) if ranks_abilities else list(source.abilities)[:1]
            sources.append(replace(source, scale=None, ratio=shares[source.label], abilities=abilities))
        settings = replace(self._plan.settings, scale=1.0, ratio=max(shares.values()), share="parameters")
        settings = replace(settings, scope="global", selection=method, method="task_arithmetic")
        return TransferOverride(settings, sources)
