"""What patching did to the loss, with intervals, beside control channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from act_lightning.analysis.activation_patching import ABLATE, PATCH, SOURCE, TARGET
from act_lightning.channels import ChannelInventory
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.intervals import bootstrap
from act_lightning.masks import random_scores


def random_channels(mask: Tensor, *key: object) -> Tensor:
    """As many channels as ``mask`` selects, drawn from all of the model's.

    Args:
        mask: Bool ``[channels]``.
        key: What is drawn from, such as a seed and a name.

    Returns:
        Bool ``[channels]``.
    """
    drawn = torch.zeros_like(mask)
    drawn[torch.topk(random_scores(mask.numel(), "random", *key), int(mask.sum())).indices] = True
    return drawn


def like_by_module(mask: Tensor, inventory: ChannelInventory, *key: object) -> Tensor:
    """As many channels of every module, so of every layer and type, as ``mask`` selects of it.

    They are drawn from those that ``mask`` leaves; where it takes more than half of a module, the rest is made up from
    its own.

    Args:
        mask: Bool ``[channels]``.
        inventory: The channels of the model.
        key: What is drawn from, such as a seed and a name.

    Returns:
        Bool ``[channels]``.
    """
    order = random_scores(mask.numel(), "like by module", *key) + (~mask).float()  # what is left comes first
    drawn = torch.zeros_like(mask)
    for _, span in inventory.spans():
        drawn[span.start + torch.topk(order[span], int(mask[span].sum())).indices] = True
    return drawn


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
            problem, hint = "must be finite", "Look for NaN in the weights of both models, or compare them in float32."
            raise ActError(ConfigIssue(f"loss of {name}", "NaN or infinity", problem, hint))
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
