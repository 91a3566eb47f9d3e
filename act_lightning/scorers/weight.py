"""How far the weights have moved: the control that Finding 5 of the paper compares with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from act_lightning.scorers.scorer import WeightScorer


@dataclass(frozen=True)
class Weight(WeightScorer):
    """‖θ_abl,i − θ_trg,i‖₂ over all that channel i owns: its row and bias, or an embedding's column (paper §3.4)."""

    name: ClassVar[str] = "weight"

    def values(self, change: Tensor) -> Tensor:
        """Squares."""
        return change.square()

    def finish(self, sums: Tensor, sizes: Tensor) -> Tensor:
        """The root of their sum."""
        return sums.sqrt()


@dataclass(frozen=True)
class WeightRMS(Weight):
    """‖θ_abl,i − θ_trg,i‖₂ / √n with n the number of parameters of channel i, so that long rows rank no higher."""

    name: ClassVar[str] = "weight_rms"

    def finish(self, sums: Tensor, sizes: Tensor) -> Tensor:
        """The root of their mean."""
        return (sums / sizes).sqrt()
