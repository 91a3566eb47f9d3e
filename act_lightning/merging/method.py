"""What a merging method is: a pure function from masked task vectors of one tensor to its change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class TaskVector:
    """The change that one source proposes for one tensor, θ_abl − θ_trg.

    Attributes:
        delta: float32, any shape; the same for all sources of a tensor.
        weight: λ of this source, or its weight in vote and mean for methods that vote.
        mask: Bool, broadcastable to ``delta``: the elements that may move; ``None`` means all.
        source: Name of the source, for random draws.
    """

    delta: Tensor
    weight: float = 1.0
    mask: Tensor | None = None
    source: str = ""

    def restricted(self) -> Tensor:
        """``delta`` with zeros outside the mask."""
        return self.delta if self.mask is None else torch.where(self.mask, self.delta, torch.zeros_like(self.delta))


@dataclass(frozen=True)
class TensorPlace:
    """Which tensor is merged, so that random draws depend on nothing else.

    Attributes:
        name: Full name of the parameter.
        seed: Seed of the run.
    """

    name: str
    seed: int = 0


class MergingMethod(ABC):
    """A merging method; subclasses are dataclasses of the method's own settings.

    Attributes:
        elementwise: Whether an element of the result depends on that element of the task vectors alone. Such a
            method may be given only the selected rows of a tensor; any other is given the whole tensor.
        weighs_each: Whether every source has a λ of its own (methods that sum), rather than one λ for the merged
            vector and a relative weight for each source (methods that vote or average).
    """

    elementwise: ClassVar[bool] = False
    weighs_each: ClassVar[bool] = False

    @abstractmethod
    def merge(self, vectors: Sequence[TaskVector], place: TensorPlace) -> Tensor:
        """The change of one tensor, to be added to the target.

        Args:
            vectors: One task vector a source, in the order of the sources; at least one.
            place: Which tensor this is.

        Returns:
            float32, of the shape of the task vectors; zero where no mask selects.
        """


def apply_change(target: Tensor, change: Tensor, selected: Tensor) -> Tensor:
    """θ = θ_trg + change where ``selected``, rounded once to the target's dtype; elsewhere every bit stays.

    Args:
        target: The target's values, any floating dtype.
        change: float32, of the shape of ``target``.
        selected: Bool, broadcastable to ``target``.

    Returns:
        A tensor of the target's shape and dtype (paper §4.2, equation 5).
    """
    return torch.where(selected, (target.float() + change).to(target.dtype), target)
