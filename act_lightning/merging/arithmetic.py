"""Task arithmetic: the weighted sum of task vectors (Ilharco et al. 2023, https://arxiv.org/abs/2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

from act_lightning.merging.method import MergingMethod, TaskVector, TensorSlice


def task_arithmetic(vectors: Sequence[TaskVector]) -> Tensor:
    """Σ_m λ_m (θ_abl(m) − θ_trg) · 1(M(m)), summed in float32 in the order of the sources.

    Each product is rounded before it is added, so that the sum does not depend on the machine's fused operations.
    With masks this is the transfer of ACT (paper §4.2, https://arxiv.org/abs/2601.09398); without, task arithmetic.

    Args:
        vectors: One task vector per source, float32, all of one shape, which is that of the result.

    >>> import torch
    >>> first = TaskVector(torch.tensor([1.0, 2.0]), weight=0.5, mask=torch.tensor([True, False]))
    >>> task_arithmetic([first, TaskVector(torch.tensor([1.0, 1.0]), weight=0.25)]).tolist()
    [0.75, 0.25]
    """
    return reduce(add, (vector.restricted() * vector.weight for vector in vectors))


@dataclass(frozen=True)
class TaskArithmetic(MergingMethod):
    """Task arithmetic as a merging method: see :func:`task_arithmetic`."""

    elementwise = True
    per_source_scale = True

    def merge(self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice) -> Tensor:
        """The weighted sum of ``vectors``."""
        return task_arithmetic(vectors)
