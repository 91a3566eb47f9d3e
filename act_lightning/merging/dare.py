"""DARE: drop elements at random and rescale the rest (Yu et al. 2024, https://arxiv.org/abs/2311.03099)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.merging.method import Parts, TaskVector, TensorSlice, TwoPassMethod
from act_lightning.merging.sparsify import (
    SMALLEST,
    Rescale,
    keeps,
    norm_factors,
    rescale_issues,
    share_issues,
    sparsify,
    weighted,
)


def dare(vectors: Sequence[TaskVector], kept: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """Σ_m λ_m · factor_m · (b_m ⊙ δ_m), summed in float32 in the order of the sources.

    With b_m ~ Bernoulli(density) and factor 1 / density the expected change is that of task arithmetic.

    Args:
        vectors: One task vector a source, float32, all of one shape.
        kept: b_m, a mask of that shape a source, bool or bits.
        factors: What makes up for the dropped elements.

    Returns:
        float32, of that shape.

    >>> import torch
    >>> dare([TaskVector(torch.tensor([1.0, 2.0]), weight=0.5)], [torch.tensor([True, False])], [2.0]).tolist()
    [1.0, 0.0]
    """
    changes = [sparsify(*each) for each in zip(vectors, kept, factors, strict=True)]
    return reduce(add, weighted(vectors, changes))


@dataclass(frozen=True)
class DARE(TwoPassMethod):
    """DARE as a merging method: see :func:`dare`.

    The draw of an element hangs on seed, source, tensor and position only. At density 0 everything is dropped and
    nothing changes; at 1 this is task arithmetic.

    Attributes:
        density: Probability with which an element stays, in [0, 1]; the DARE paper drops nine tenths.
        rescale: ``density``: by 1 / density, as the paper; ``norm``: back to the tensor's ‖δ‖₁, as mergekit; ``none``.
    """

    weighs_each = True

    density: float = 0.1
    rescale: Rescale = "density"

    def issues(self) -> list[ConfigIssue]:
        """A density that is no share, and an unknown way to rescale."""
        name = type(self).__name__
        return share_issues(self.density, f"{name}.density") + rescale_issues(self.rescale, f"{name}.rescale")

    @property
    def elementwise(self) -> bool:
        """Unless norms of the whole tensor are needed."""
        return self.rescale != "norm" or self.density == 1

    def survey(self, parts: Parts) -> list[float] | None:
        """The factor of each source, where it takes the whole tensor to know it."""
        return None if self.elementwise else norm_factors(parts, self.kept)

    def merge_rows(self, vectors: Sequence[TaskVector], place: TensorSlice, survey: list[float] | None) -> Tensor:
        """The sum of some rows of the thinned task vectors."""
        return dare(vectors, [self.kept(vector, place) for vector in vectors], self.factors(vectors, survey))

    def kept(self, vector: TaskVector, place: TensorSlice) -> Tensor:
        """Which elements of a task vector stay: a bit mask of its shape."""
        return keeps(self.density, vector.delta.shape, place, vector.source, vector.delta.device)

    def factors(self, vectors: Sequence[TaskVector], survey: list[float] | None) -> list[float]:
        """What makes up for the dropped elements of each source."""
        if survey is not None:
            return survey
        return [1 / self.density if self.rescale == "density" and self.density >= SMALLEST else 1.0] * len(vectors)
