"""How far apart activations are: between the two models (the paper's rule), on other scales, and by weights alone."""

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

    experts: str = "all"

    def values(self, observation: Observation) -> Tensor:
        """|Δa|, with the difference taken in float32."""
        assert observation.source is not None
        return (observation.target - observation.source.float()).abs_()  # promotes the target to float32 on its way


@dataclass(frozen=True)
class ActivationOverModuleMean(Activation):
    """Δa_i divided by the mean of Δa over the channels of its module; made from saved scores of ``activation``.

    Modules differ in the size of their outputs, so that raw scores rank modules before they rank channels.
    """

    name: ClassVar[str] = "activation_module_mean"
    saved_as: ClassVar[str] = "activation"

    def ranked(self, scores: Tensor, inventory: ChannelInventory) -> Tensor:
        """Scores divided by their module's float64 mean; those of a module without change stay 0."""
        ranked = []
        for part in inventory.split(scores).values():
            mean = part.double().mean()
            ranked.append((part / mean).float() if bool(mean > 0) else part)
        return torch.cat(ranked)


@dataclass(frozen=True)
class RelativeActivation(ActivationScorer):
    """Δa_i over (1/|T|) Σ_{t∈T} |a_i,t(trg)|, the target's own mean magnitude at the same tokens.

    A channel that is zero in the target and not in the source has the largest float32 number as its score, or nearly;
    one that is zero in both has 0.
    """

    name: ClassVar[str] = "activation_relative"
    terms: ClassVar[int] = 2

    experts: str = "all"

    def values(self, observation: Observation) -> Tensor:
        """|Δa| and |a(trg)|."""
        assert observation.source is not None
        target = observation.target.float()
        return torch.stack([(target - observation.source.float()).abs(), target.abs()])

    def finish(self, means: Tensor) -> Tensor:
        """The quotient of both means."""
        smallest, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
        return (means[0] / means[1].clamp(min=smallest)).clamp(max=largest)


@dataclass(frozen=True)
class Local(ActivationScorer):
    """(1/|T|) Σ_{t∈T} |Δw_i · x_t + Δb_i|, x_t being the input of the target's own module at answer token t.

    In general form: the output of the target's module with the source's weights, minus its own output. That holds for
    every module (an embedding's x_t picks a row), and settings such as a norm's ε stay the target's, as they do in a
    transfer. Only the target runs, and each of its modules once more at answer tokens. Both outputs are rounded to the
    precision of the weights: in bfloat16 small differences drown, as they do in Δa.
    """

    name: ClassVar[str] = "local"
    needs_source: ClassVar[bool] = False
    needs_source_weights: ClassVar[bool] = True

    experts: str = "all"

    def values(self, observation: Observation) -> Tensor:
        """|output with the source's weights − output|, with the difference taken in float32."""
        assert observation.source_weight_output is not None
        return (observation.source_weight_output.float() - observation.target.float()).abs()
