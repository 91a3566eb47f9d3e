"""What validation measures at answer tokens: loss, perplexity and token accuracy, by ability and by role."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.training.head_loss import Scored

_MEASURES = ("loss", "perplexity", "accuracy")
KEEP_ACCURACY, RECOVER_ACCURACY = "val_keep_accuracy", "val_recover_accuracy"
WITHIN_KEEP = "val_recover_within_keep"


class AnswerTokens(Metric):
    """Mean loss, perplexity ``exp(loss)`` and accuracy at the answer tokens of one set.

    Attributes:
        loss: float64 scalar (float32 where the device has no other), summed over processes.
        right: int64 scalar, summed over processes.
        tokens: int64 scalar, summed over processes.
    """

    is_differentiable = False
    full_state_update = False

    loss: Tensor
    right: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, batch: Scored) -> None:
        """Count a batch."""
        self.loss += batch.loss.detach()
        self.right += batch.right
        self.tokens += batch.tokens

    def compute(self) -> dict[str, Tensor]:
        """``loss``, ``perplexity`` and ``accuracy``, float32 scalars; NaN without tokens."""
        loss = self.loss / self.tokens
        return {"loss": loss, "perplexity": loss.exp(), "accuracy": self.right / self.tokens}


class Validation:
    """The metrics of all validation sets.

    Args:
        roles: ``keep``, ``recover`` or ``None``, by set, in the order of their loaders.
        device: Where metrics count.
    """

    def __init__(self, roles: Mapping[str, str | None], device: torch.device) -> None:
        self.roles = roles
        self._metrics = [AnswerTokens().to(device) for _ in roles]

    def add(self, number: int, batch: Scored) -> None:
        """Count a batch of the set with this number."""
        self._metrics[number].update(batch)

    def values(self) -> dict[str, Tensor]:
        """What is logged, the same on all processes, which must all ask.

        ``val_loss/<set>``, ``val_perplexity/<set>`` and ``val_accuracy/<set>``; their means over all sets, each counted
        alike, as ``val_loss`` and so on; and over those of a role, as ``val_keep_loss`` or ``val_recover_accuracy``.
        """
        by_set = dict(zip(self.roles, (metric.compute() for metric in self._metrics), strict=True))
        found = {f"val_{measure}/{name}": values[measure] for name, values in by_set.items() for measure in _MEASURES}
        groups = {"val": list(by_set)} | {
            f"val_{role}": [name for name, its in self.roles.items() if its == role] for role in ("keep", "recover")
        }
        for group, names in groups.items():
            for measure in _MEASURES if names else ():
                found[f"{group}_{measure}"] = torch.stack([by_set[name][measure] for name in names]).mean()
        return found


def within_keep(keep: Tensor, recover: Tensor, floor: float) -> Tensor:
    """Recover where keep reaches a floor, else how far it is below: higher is better.

    >>> keep = torch.tensor([0.9, 0.9, 0.7, 0.6])
    >>> within_keep(keep, torch.tensor([0.2, 0.4, 0.9, 0.9]), floor=0.8).round(decimals=2)
    tensor([ 0.2000,  0.4000, -0.1000, -0.2000])

    Args:
        keep: Accuracy, in [0, 1].
        recover: Accuracy, in [0, 1], of the same shape.
        floor: What keep must reach.
    """
    return torch.where(keep >= floor, recover, keep - floor)


def validation_roles(data: AbilityDataModule) -> dict[str, str | None]:
    """The role of every validation set: the ability's own, or else that of the evaluation set of its name.

    Args:
        data: The data module.
    """

    def role(name: str) -> str | None:
        of_ability, evaluation = data.abilities[name].role, data.evaluations.get(name)
        return evaluation.role if of_ability is None and evaluation is not None else of_ability

    return {name: role(name) for name in data.validation_names}
