"""How much a channel's own weights change what it gives, apart from what reaches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from act_lightning.scorers.scorer import ActivationScorer, Observation


@dataclass(frozen=True)
class Local(ActivationScorer):
    """(1/|T|) Σ_{t∈T} |Δw_i · x_t + Δb_i|, x_t being the input that the target's own module has at answer token t.

    In general form: what the target's module gives with the source's weights, less what it gives. That holds for every
    module (an embedding's x_t picks a row), and its settings, a norm's ε among them, stay the target's, as they do in a
    transfer. The source reads nothing; only the target runs, and each of its modules once more at answer tokens. Both
    outputs are rounded to the precision of the weights: in bfloat16 small differences drown, as they do in Δa.
    """

    name: ClassVar[str] = "local"
    needs_source: ClassVar[bool] = False
    needs_swapped: ClassVar[bool] = True

    def values(self, seen: Observation) -> Tensor:
        """|swapped − target|, with the difference taken in float32."""
        assert seen.swapped is not None
        return (seen.swapped.float() - seen.target.float()).abs()
