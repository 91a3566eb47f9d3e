"""The paper's score: how far apart the activations of the two models are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from act_lightning.scorers.scorer import ActivationScorer, Observation


@dataclass(frozen=True)
class Activation(ActivationScorer):
    """Δa_i = (1/|T|) Σ_{t∈T} |a_i,t(abl) − a_i,t(trg)| (paper §3.1, eq. 1, https://arxiv.org/abs/2601.09398)."""

    def values(self, seen: Observation) -> Tensor:
        """|Δa|, with the difference taken in float32."""
        assert seen.source is not None
        return (seen.target.float() - seen.source.float()).abs()
