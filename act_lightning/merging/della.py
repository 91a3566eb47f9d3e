"""DELLA: drop small changes more often than large ones, then merge by sign consensus (Deep et al. 2024).

https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.merging.method import Parts, TaskVector, TensorSlice, TwoPassMethod
from act_lightning.merging.sparsify import Rescale, as_rows, norm_factors, sparsify, uniform
from act_lightning.merging.ties import sign_consensus


def keep_probabilities(vector: TaskVector, density: float, spread: float) -> Tensor:
    """The probability that each element stays: density − ε for a row's smallest |δ|, density + ε for its largest.

    In between it grows with the rank among the selected elements of the row; a vector is one row. The only selected
    element of a row stays with probability ``density``.

    Args:
        vector: A task vector, float32 ``[rows, …]``.
        density: Mean probability.
        spread: ε.

    Returns:
        float32, of the shape of the task vector; meaningless where nothing is selected.

    >>> keep_probabilities(TaskVector(torch.tensor([[3.0, -1.0, 2.0]])), 0.5, 0.25).tolist()
    [[0.75, 0.25, 0.5]]
    """
    size = vector.delta.abs()
    if vector.mask is not None:
        size = torch.where(vector.mask, size, -1.0)
    size = size.unsqueeze(0) if size.ndim < 2 else as_rows(size)
    order = size.argsort(dim=1, stable=True)
    positions = torch.arange(size.shape[1], device=size.device).float().expand_as(size)
    ranks = torch.empty_like(size).scatter_(1, order, positions)
    unselected = (size < 0).sum(1, keepdim=True)
    highest = size.shape[1] - 1 - unselected
    share = torch.where(highest > 0, (ranks - unselected).clamp(min=0) / highest.clamp(min=1), 0.5)
    return (density - spread + share * 2 * spread).view(vector.delta.shape)


def della(
    vectors: Sequence[TaskVector], masks: Sequence[Tensor], factors: Sequence[float | Tensor], average: bool = True
) -> Tensor:
    """The mean of w_m · factor_m · (b_m ⊙ δ_m) over the sources that agree with the sign of their sum.

    Args:
        vectors: One task vector per source, float32, all of one shape, which is that of the result.
        masks: b_m ~ Bernoulli(:func:`keep_probabilities`), a bool or bit mask of that shape per source.
        factors: What makes up for the dropped elements: one number per source, or one per element.
        average: Whether to divide by Σ w_m of the agreeing sources.
    """
    products = list(map(sparsify, vectors, masks, factors))
    return sign_consensus(products, [vector.weight for vector in vectors], average)


class _Whole(NamedTuple):
    """What a few rows do not tell of their tensor.

    Attributes:
        rows: The element numbers of a vector, int64, ascending; ``None`` if the tensor has rows of its own.
        probabilities: Of these elements, for each source.
        factors: What restores ‖δ‖₁ of each source; ``None`` unless it is restored.
    """

    rows: Tensor | None = None
    probabilities: Sequence[Tensor] = ()
    factors: Sequence[float] | None = None


@dataclass(frozen=True)
class DELLA(TwoPassMethod):
    """DELLA as a merging method: see :func:`della`. Of a vector, which is one row, all elements are held.

    At density 0 everything is dropped and nothing changes; at 1 nothing is dropped. ``spread`` is unused in both cases.

    Attributes:
        density: Mean probability that an element stays, in [0, 1].
        spread: ε; density ± ε must lie within (0, 1).
        rescale: ``density``: by 1 / its probability, as the paper; ``norm``: back to the tensor's ‖δ‖₁, as mergekit;
            ``none``.
        average: Whether agreeing sources are averaged or summed.
    """

    shares = ("density",)
    choices = (("rescale", get_args(Rescale)),)

    density: float = 0.5
    spread: float = 0.15
    rescale: Rescale = "density"
    average: bool = True

    @property
    def elementwise(self) -> bool:
        """Where nothing is drawn."""
        return self.density in (0, 1)

    def issues(self) -> list[ConfigIssue]:
        """Probabilities outside (0, 1), and an unknown way to rescale."""
        issues = super().issues()
        limit = min(self.density, 1 - self.density)
        if not issues and limit and not 0 <= self.spread < limit:
            problem = f"must be at least 0 and below {limit:g}, so that density ± spread lie in (0, 1)"
            issues.append(ConfigIssue("DELLA.spread", self.spread, problem, "Choose a smaller spread."))
        return issues

    def first_pass(self, parts: Parts) -> _Whole:
        """The probabilities of a vector, whose elements are ranked together, and the factors of norms."""
        whole = _Whole()
        if self.elementwise:
            return whole
        vectors = list(takewhile(lambda part: part[0][0].delta.ndim == 1, parts()))
        if vectors:
            rows = [
                tensor_slice.row_numbers(len(of_part[0].delta), torch.device("cpu"))
                for of_part, tensor_slice in vectors
            ]
            by_source = zip(*(of_part for of_part, _ in vectors), strict=True)
            whole = _Whole(torch.cat(rows), [self._probabilities_of_vector(source) for source in by_source])
        if self.rescale == "norm":
            drawn = ((of_part, self._draw(of_part, tensor_slice, whole)[0]) for of_part, tensor_slice in parts())
            whole = whole._replace(factors=norm_factors(drawn))
        return whole

    def merge_rows(self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice, statistics: _Whole) -> Tensor:
        """The sign consensus of some rows of the sparse task vectors."""
        masks, probabilities = self._draw(vectors, tensor_slice, statistics)
        factors: Sequence[float | Tensor] = [1.0] * len(vectors)
        if statistics.factors is not None:
            factors = statistics.factors
        elif self.rescale == "density" and not self.elementwise:
            factors = [1 / probability for probability in probabilities]
        return della(vectors, masks, factors, self.average)

    def _probabilities_of_vector(self, pieces: Sequence[TaskVector]) -> Tensor:
        """The probabilities of the elements of a task vector that is a vector, read in pieces."""
        mask = None
        if pieces[0].mask is not None:
            mask = torch.cat([cast(Tensor, piece.mask).expand(piece.delta.shape) for piece in pieces])
        whole = TaskVector(torch.cat([piece.delta for piece in pieces]), mask=mask)
        return keep_probabilities(whole, self.density, self.spread)

    def _draw(
        self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice, whole: _Whole
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Which elements of some rows stay, bool, and how probable that was, float32, of each source."""
        masks, probabilities = [], []
        for number, vector in enumerate(vectors):
            delta = vector.delta
            if self.elementwise:
                probability = torch.full_like(delta, self.density)
            elif whole.rows is None:
                probability = keep_probabilities(vector, self.density, self.spread)
            else:
                places = torch.searchsorted(whole.rows, tensor_slice.row_numbers(len(delta), whole.rows.device))
                probability = whole.probabilities[number][places.to(delta.device)]
            masks.append(uniform(delta.shape, tensor_slice, vector.source, delta.device) < probability)
            probabilities.append(probability)
        return masks, probabilities
