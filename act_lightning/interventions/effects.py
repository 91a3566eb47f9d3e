"""What interventions did to the loss, with intervals: selected channels beside those they must be measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from act_lightning.errors import ActError, Fault
from act_lightning.evaluation import bootstrap
from act_lightning.interventions.trial import ABLATE, PATCH, SOURCE, TARGET

SELECTED, RANDOM, ALIKE = "selected", "random", "same modules"
CONTROLS = (RANDOM, ALIKE)


@dataclass(frozen=True)
class Effect:
    """A difference of mean losses, in nats for each answer token, paired by sample.

    Attributes:
        intervention: ``patch``: the source's activations; ``ablate``: the target's own mean.
        channels: Which: ``selected``, ``random``, ``same modules``.
        against: What it is compared with: ``target``, or the same intervention on other channels.
        change: The mean difference; below 0 where the loss falls.
        low: Lower bound of its 95 % bootstrap interval over samples.
        high: Upper bound.
        size: The mean difference over its standard deviation (Cohen's d for paired samples); NaN for one sample, or
            where all differences are equal.
        gap: Share of the way from the target's loss to the source's; NaN where the source's is not the lower one.
    """

    intervention: str
    channels: str
    against: str
    change: float
    low: float
    high: float
    size: float
    gap: float


def effects(losses: Mapping[str, Tensor]) -> list[Effect]:
    """Every intervention against the target, and selected channels against each control.

    Args:
        losses: float64 ``[samples]``: ``target``, ``source`` and, for both interventions, ``patch/selected``,
            ``patch/random 1`` and so on; draws of one control are averaged.

    Raises:
        ActError: A loss is NaN or infinite.
    """
    for name, values in losses.items():
        if not bool(torch.isfinite(values).all()):
            rule, remedy = "must be finite", "Look for NaN in the weights of both models, or compare them in float32."
            raise ActError(Fault(f"loss of {name}", "NaN or infinity", rule, remedy))
    way = float((losses[SOURCE] - losses[TARGET]).mean())
    found = [_effect(SOURCE, SOURCE, TARGET, losses[SOURCE] - losses[TARGET], way)]
    for kind in (PATCH, ABLATE):
        groups = {name: _mean_of(losses, f"{kind}/{name}") for name in (SELECTED, *CONTROLS)}
        found += [_effect(kind, name, TARGET, values - losses[TARGET], way) for name, values in groups.items()]
        found += [_effect(kind, SELECTED, name, groups[SELECTED] - groups[name], way) for name in CONTROLS]
    return found


def _mean_of(losses: Mapping[str, Tensor], prefix: str) -> Tensor:
    """The mean over the draws of one control, sample by sample."""
    return torch.stack([values for name, values in losses.items() if name.startswith(prefix)]).mean(0)


def _effect(kind: str, channels: str, against: str, differences: Tensor, way: float) -> Effect:
    mean = float(differences.mean())
    spread = float(differences.std()) if len(differences) > 1 else 0.0
    size = mean / spread if spread > 0 else float("nan")
    gap = mean / way if way < 0 else float("nan")
    return Effect(kind, channels, against, mean, *bootstrap(differences), size, gap)
