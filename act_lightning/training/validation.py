"""What validation measures at answer tokens: loss, perplexity and token accuracy, by ability and by role."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.training.loss import TokenScores

_MEASURES = ("loss", "perplexity", "accuracy")
KEEP_ACCURACY, RECOVER_ACCURACY = "val_keep_accuracy", "val_recover_accuracy"
WITHIN_KEEP = "val_recover_within_keep"


class AnswerTokens(Metric):
    """Mean loss, perplexity ``exp(loss)`` and accuracy at the answer tokens of one set.

    Attributes:
        loss: float64 scalar, summed over processes. In float32 batches get lost after millions of tokens.
        correct: int64 scalar, summed over processes.
        tokens: int64 scalar, summed over processes.
    """

    is_differentiable = False
    full_state_update = False

    loss: Tensor
    correct: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, batch: TokenScores) -> None:
        """Count a batch."""
        self.loss += batch.loss.detach().to(self.loss.device)
        self.correct += batch.correct.to(self.correct.device)
        self.tokens += batch.tokens

    def compute(self) -> dict[str, Tensor]:
        """``loss``, ``perplexity`` and ``accuracy``, float32 scalars; NaN without tokens."""
        loss = self.loss / self.tokens
        return {"loss": loss.float(), "perplexity": loss.exp().float(), "accuracy": self.correct / self.tokens}


class Validation:
    """The metrics of all validation sets.

    Args:
        roles: ``keep``, ``recover`` or ``None`` by set, in the order of the dataloaders.
        device: Where the metrics keep their state; it must have float64.
    """

    def __init__(self, roles: Mapping[str, str | None], device: torch.device) -> None:
        self.roles = roles
        self.metrics = [AnswerTokens().to(device) for _ in roles]

    def compute(self) -> dict[str, Tensor]:
        """The values to log, equal on all processes, which must all call this.

        ``val_loss/<set>``, ``val_perplexity/<set>`` and ``val_accuracy/<set>``; their means over all sets, unweighted,
        as ``val_loss`` and so on; and their means over the sets of a role, as ``val_keep_loss``.
        """
        by_set = dict(zip(self.roles, (metric.compute() for metric in self.metrics), strict=True))
        values = {f"val_{measure}/{name}": of_set[measure] for name, of_set in by_set.items() for measure in _MEASURES}
        groups = {"val": list(by_set)}
        for role in ("keep", "recover"):
            groups[f"val_{role}"] = [name for name, role_of_set in self.roles.items() if role_of_set == role]
        for group, names in groups.items():
            for measure in _MEASURES if names else ():
                values[f"{group}_{measure}"] = torch.stack([by_set[name][measure] for name in names]).mean()
        return values


def within_keep(keep: Tensor, recover: Tensor, floor: float) -> Tensor:
    """``recover`` where ``keep`` reaches a floor, else the negative distance from it; higher is better.

    >>> keep = torch.tensor([0.9, 0.9, 0.7, 0.6])
    >>> within_keep(keep, torch.tensor([0.2, 0.4, 0.9, 0.9]), floor=0.8).round(decimals=2)
    tensor([ 0.2000,  0.4000, -0.1000, -0.2000])

    Args:
        keep: Accuracy in [0, 1].
        recover: Accuracy in [0, 1], of the same shape.
        floor: The least accuracy that ``keep`` must reach.
    """
    return torch.where(keep >= floor, recover, keep - floor)


def validation_roles(data: AbilityDataModule) -> dict[str, str | None]:
    """The role of every validation set: the ability's own, or else that of the evaluation set of the same name."""
    roles: dict[str, str | None] = {name: data.abilities[name].role for name in data.validation_names}
    for name, evaluation in data.evaluations.items():
        if name in roles and roles[name] is None:
            roles[name] = evaluation.role
    return roles
