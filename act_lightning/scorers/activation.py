"""How far apart the activations of the two models are: the paper's score, and the same on other scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.scorers.scorer import ActivationScorer, Observation


@dataclass(frozen=True)
class Activation(ActivationScorer):
    """Δa_i = (1/|T|) Σ_{t∈T} |a_i,t(abl) − a_i,t(trg)| (paper §3.1, eq. 1, https://arxiv.org/abs/2601.09398)."""

    name: ClassVar[str] = "activation"

    def values(self, seen: Observation) -> Tensor:
        """|Δa|, with the difference taken in float32."""
        assert seen.source is not None
        return (seen.target - seen.source.float()).abs_()  # which converts the other on its way


@dataclass(frozen=True)
class ActivationOverModuleMean(Activation):
    """Δa_i divided by the mean of Δa over the channels of its module; made from saved scores of ``activation``.

    Modules differ in the size of what they give, so that raw scores rank modules before they rank channels.
    """

    name: ClassVar[str] = "activation_module_mean"
    saved_as: ClassVar[str] = "activation"

    def ranked(self, scores: Tensor, inventory: ChannelInventory) -> Tensor:
        """Scores over their module's mean, which is taken in float64; those of a module without change stay 0."""
        return torch.cat([_over_mean(part) for part in inventory.split(scores).values()])


def _over_mean(scores: Tensor) -> Tensor:
    mean = scores.double().mean()
    return (scores / mean).float() if bool(mean > 0) else scores


@dataclass(frozen=True)
class RelativeActivation(ActivationScorer):
    """Δa_i over (1/|T|) Σ_{t∈T} |a_i,t(trg)|, the target's own mean magnitude at the same tokens.

    A channel that gives nothing in the target and something in the source has the largest score that float32 holds or
    nearly; one that gives nothing in either has 0.
    """

    name: ClassVar[str] = "activation_relative"
    terms: ClassVar[int] = 2

    def values(self, seen: Observation) -> Tensor:
        """|Δa| and |a(trg)|."""
        assert seen.source is not None
        target = seen.target.float()
        return torch.stack([(target - seen.source.float()).abs(), target.abs()])

    def finish(self, means: Tensor) -> Tensor:
        """The quotient of both means."""
        smallest, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
        return (means[0] / means[1].clamp(min=smallest)).clamp(max=largest)
