"""What methods share that drop elements and rescale the rest: the draws, and the factor that makes up for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from act_lightning.errors import Fault
from act_lightning.merging.bits import masked
from act_lightning.merging.method import Parts, TaskVector, TensorPlace

Rescale = Literal["density", "norm", "none"]
_SMALLEST_NORM = 1e-7  # below which mergekit does not divide


def rescale_faults(rescale: str, setting: str) -> list[Fault]:
    """What is wrong with the way of rescaling."""
    if rescale not in get_args(Rescale):
        return [Fault(setting, rescale, f"must be one of {', '.join(get_args(Rescale))}", "Choose one of these.")]
    return []


def l1(vector: TaskVector, kept: Tensor | None = None) -> float:
    """‖δ‖₁ over the selected elements, or over those of them that are ``kept``, summed in float64."""
    size = vector.restricted().abs()
    return float((size if kept is None else masked(size, kept)).sum(dtype=torch.float64))


def norm_factor(before: float, after: float) -> float:
    """What brings a norm back to what it was; 1 where one of them is almost zero."""
    return before / after if min(before, after) >= _SMALLEST_NORM else 1.0


def norm_factors(parts: Parts, keep: Callable[[TaskVector, TensorPlace], Tensor]) -> list[float]:
    """For each source ‖δ‖₁ / ‖δ kept‖₁ over the selected elements of a whole tensor.

    Args:
        parts: Goes through the parts of the tensor.
        keep: The elements of a task vector that stay, as a mask.
    """
    totals: list[list[float]] = []
    for vectors, place in parts():
        totals = totals or [[0.0, 0.0] for _ in vectors]
        for total, vector in zip(totals, vectors, strict=True):
            total[0] += l1(vector)
            total[1] += l1(vector, keep(vector, place))
    return [norm_factor(before, after) for before, after in totals]


def thinned(vector: TaskVector, kept: Tensor, factor: float | Tensor) -> Tensor:
    """Factor · δ where it is kept and selected, else 0; float32, of the shape of δ.

    Args:
        vector: A task vector.
        kept: A bool or bit mask, of its shape.
        factor: What makes up for the dropped elements; a tensor of that shape where it differs.
    """
    return masked(vector.restricted(), kept).mul_(factor)


def weighted(vectors: Sequence[TaskVector], changes: Sequence[Tensor]) -> list[Tensor]:
    """Each change times its source's weight, rounded to float32."""
    return [change * vector.weight for vector, change in zip(vectors, changes, strict=True)]
