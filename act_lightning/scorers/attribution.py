"""How far the answer loss would fall if a channel alone took the source's weights, to first order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.masks import ratio_issues
from act_lightning.scorers.scorer import Scorer

_ROUNDS = (1, 2)


@dataclass(frozen=True)
class Attribution(Scorer):
    """s_i = −Σ_t (∂L/∂a_i,t) · (Δw_i · x_t), divided by the number of parameters that channel i owns.

    L is the mean of −log p over the answer tokens of all samples. The sum over tokens equals the sum of the elements of
    ∂L/∂θ ⊙ (θ_abl − θ_trg) that the channel owns, so gradients are all that is needed; they are taken at
    θ_trg + α (θ_abl − θ_trg), half-way by default, and averaged where several α are given. Of a tied matrix a row
    (lm_head's) and a column (the embedding's) both use the whole gradient, through both uses of the matrix, since that
    is the change of L when these elements move.

    With abilities to ``keep``, ``penalty`` times the rise of their mean loss that the same channel causes, where it
    causes one, is taken off before dividing.

    With two ``rounds``, the best channels of the first, ``first_share`` of the parameters, are given the source's
    weights, gradients are taken again, and all other channels are ranked by these; the first stay in front, in their
    order.

    Attributes:
        alpha: α, or several.
        keep: Abilities that are not to be lost, out of ``data.abilities``.
        penalty: μ, how much a rise of their loss counts beside a fall of the ability's.
        rounds: 1 or 2.
        first_share: The share of the parameters that moves after the first of two rounds.
        tokens_per_batch: Bound on the tokens of a batch, for a backward pass keeps what its layers gave.
    """

    name: ClassVar[str] = "attribution"

    alpha: float | list[float] = 0.5
    keep: list[str] = field(default_factory=list)
    penalty: float = 1.0
    rounds: int = 1
    first_share: float = 0.001
    tokens_per_batch: int = 2048

    def __hash__(self) -> int:
        """By all settings, lists among them."""
        return hash(repr(self))

    @property
    def alphas(self) -> tuple[float, ...]:
        """All α."""
        return tuple(self.alpha) if isinstance(self.alpha, Sequence) else (self.alpha,)

    def issues(self) -> list[ConfigIssue]:
        """α outside [0, 1], a penalty that is no number or has nothing to act on, and so on."""
        setting, found = "transfer.selection", []
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            found.append(ConfigIssue(f"{setting}.alpha", self.alpha, "must lie in [0, 1]", "Try 0.5, or [0.25, 0.75]."))
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            found.append(ConfigIssue(f"{setting}.penalty", self.penalty, "must be at least 0", "Try 1.0."))
        if self.rounds not in _ROUNDS:
            found.append(ConfigIssue(f"{setting}.rounds", self.rounds, "must be 1 or 2", "Choose one of these."))
        if self.tokens_per_batch < 1:
            found.append(
                ConfigIssue(f"{setting}.tokens_per_batch", self.tokens_per_batch, "must be at least 1", "Try 2048.")
            )
        return found + ratio_issues(self.first_share, f"{setting}.first_share")

    def record(self) -> dict[str, Any]:
        """Its settings, without those that have no effect."""
        found = {**super().record(), "alpha": list(self.alphas)}
        unused = ["tokens_per_batch", *([] if self.keep else ["keep", "penalty"])]
        unused += ["rounds", "first_share"] if self.rounds == 1 else []
        return {key: value for key, value in found.items() if key not in unused}

    def finish(self, falls: Tensor, rises: Tensor | None, sizes: Tensor) -> Tensor:
        """Scores from what each channel would do to the losses.

        Args:
            falls: By how much the ability's loss falls, float64 ``[channels]``.
            rises: By how much that of what is to be kept rises, float64 ``[channels]``; ``None`` without any.
            sizes: Number of parameters that each channel owns, int64 ``[channels]``.

        Returns:
            ``[channels]``.
        """
        kept = falls if rises is None else falls - self.penalty * rises.clamp(min=0)
        return kept / sizes

    def in_two_rounds(self, first: Tensor, second: Tensor, moved: Tensor) -> Tensor:
        """One ranking of both rounds.

        Args:
            first: Scores of the first round, float32 ``[channels]``.
            second: Those of the second.
            moved: Bool ``[channels]``: what moved after the first.

        Returns:
            float32 ``[channels]``: the second round's, and above all of them what moved, in the order of the first.
        """
        if bool(moved.all()):
            return first
        best = torch.nextafter(second[~moved].max(), torch.tensor(math.inf))
        return torch.where(moved, best + (first - first[moved].min()), second)
