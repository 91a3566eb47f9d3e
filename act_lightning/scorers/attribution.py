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


@dataclass(frozen=True)
class Attribution(Scorer):
    """s_i = −Σ_t (∂L/∂a_i,t) · (Δw_i · x_t), divided by the number of parameters that channel i owns.

    L is the mean of −log p over the answer tokens of all samples. The sum over tokens equals the sum of the elements of
    ∂L/∂θ ⊙ (θ_abl − θ_trg) that the channel owns, so only gradients are needed. They are taken at
    θ_trg + α (θ_abl − θ_trg), half-way by default, and averaged over several α. A row (lm_head's) and a column (the
    embedding's) of a tied matrix both use the whole gradient, through both uses of the matrix, since that is the change
    of L when these elements move.

    With abilities to ``keep``, ``penalty`` times the rise of their mean loss, where the channel causes one, is
    subtracted before dividing.

    With two ``rounds``, the best channels of the first, ``first_share`` of the parameters, take the source's weights,
    gradients are taken again, and all other channels are ranked by these; the first stay in front, in their order.

    Attributes:
        alpha: α, or several.
        keep: Abilities of ``data.abilities`` that are not to be lost.
        penalty: μ, the weight of a rise of their loss against a fall of the ability's.
        rounds: 1 or 2.
        first_share: The share of the parameters that moves after the first of two rounds.
        tokens_per_batch: Bound on the tokens of a batch, whose activations a backward pass keeps.
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
        """Settings out of range, such as α outside [0, 1]."""
        setting, issues = "transfer.selection", []
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            problem, hint = "must lie in [0, 1]", "Try 0.5, or [0.25, 0.75]."
            issues.append(ConfigIssue(f"{setting}.alpha", self.alpha, problem, hint))
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            issues.append(ConfigIssue(f"{setting}.penalty", self.penalty, "must be at least 0", "Try 1.0."))
        if self.rounds not in (1, 2):
            issues.append(ConfigIssue(f"{setting}.rounds", self.rounds, "must be 1 or 2", "Choose one of these."))
        if self.tokens_per_batch < 1:
            name = f"{setting}.tokens_per_batch"
            issues.append(ConfigIssue(name, self.tokens_per_batch, "must be at least 1", "Try 2048."))
        return issues + ratio_issues(self.first_share, f"{setting}.first_share")

    def record(self) -> dict[str, Any]:
        """Its settings, without those that have no effect."""
        unused = {"tokens_per_batch"}
        if not self.keep:
            unused |= {"keep", "penalty"}
        if self.rounds == 1:
            unused |= {"rounds", "first_share"}
        settings = {**super().record(), "alpha": list(self.alphas)}
        return {key: value for key, value in settings.items() if key not in unused}

    def finish(self, falls: Tensor, rises: Tensor | None, sizes: Tensor) -> Tensor:
        """Scores from what each channel would do to the losses.

        Args:
            falls: By how much the ability's loss falls, float64 ``[channels]``.
            rises: By how much the loss on the abilities to keep rises, float64 ``[channels]``; ``None`` without any.
            sizes: Number of parameters that each channel owns, int64 ``[channels]``.

        Returns:
            ``[channels]``.
        """
        gains = falls if rises is None else falls - self.penalty * rises.clamp(min=0)
        return gains / sizes

    def in_two_rounds(self, first: Tensor, second: Tensor, moved: Tensor) -> Tensor:
        """One ranking of both rounds.

        Args:
            first: Scores of the first round, float32 ``[channels]``.
            second: Those of the second.
            moved: Bool ``[channels]``: the channels that moved after the first.

        Returns:
            float32 ``[channels]``: the second round's, and above all of them those that moved, in the first's order.
        """
        if bool(moved.all()):
            return first
        best = torch.nextafter(second[~moved].max(), torch.tensor(math.inf))
        return torch.where(moved, best + (first - first[moved].min()), second)
