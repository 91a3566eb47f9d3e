"""What a merging method is: a pure function from the masked task vectors of one tensor to the tensor's change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where the mask is set, else zero, even in place of NaN.

    Args:
        values: float32, of the shape of the result.
        mask: Broadcastable to ``values``: bool, or a bit mask, which is int32 and −1 (all bits) or 0. Bit masks take a
            few percent of the time of bools, since torch does not vectorize its loops over bools.

    >>> masked(torch.tensor([1.0, float("nan")]), torch.tensor([True, False])).tolist()
    [1.0, 0.0]
    """
    bits = mask.to(torch.int32).neg_() if mask.dtype == torch.bool else mask
    return (values.view(torch.int32) & bits).view(torch.float32)


@dataclass(frozen=True)
class TaskVector:
    """The change that one source proposes for one tensor, θ_abl − θ_trg.

    Attributes:
        delta: float32, any shape; the same for all sources of a tensor.
        weight: λ of this source, or its weight in vote and mean for methods that vote.
        mask: Bool, broadcastable to ``delta``: the elements that may move; ``None`` means all.
        source: Name of the source, for random draws.
        fisher: The source's Fisher information, float32, of the shape of ``delta``; only if the method needs it.
    """

    delta: Tensor
    weight: float = 1.0
    mask: Tensor | None = None
    source: str = ""
    fisher: Tensor | None = None

    def restricted(self) -> Tensor:
        """``delta`` with zeros outside the mask."""
        return self.delta if self.mask is None else masked(self.delta, self.mask)


@dataclass(frozen=True)
class TensorSlice:
    """Which tensor is merged, and which of its rows, so that random draws depend on nothing else.

    Attributes:
        name: Full name of the parameter.
        seed: Seed of the run.
        rows: Row numbers in the whole tensor, int64 ``[rows]``, ascending; element numbers if the tensor is a vector.
            ``None`` means all rows.
        fisher: The target's Fisher information at these rows, float32; only if the method needs it.
    """

    name: str
    seed: int = 0
    rows: Tensor | None = field(default=None, compare=False)
    fisher: Tensor | None = field(default=None, compare=False)

    def row_numbers(self, count: int, device: torch.device) -> Tensor:
        """``rows`` on ``device``; all ``count`` rows if there are none."""
        return torch.arange(count, device=device) if self.rows is None else self.rows.to(device)


Part: TypeAlias = tuple[Sequence[TaskVector], TensorSlice]
Parts: TypeAlias = Callable[[], Iterable[Part]]  # every call iterates over the tensor's parts, rows ascending
Merge: TypeAlias = Callable[[Sequence[TaskVector], TensorSlice], Tensor]


class MergingMethod(ABC):
    """A merging method; subclasses are dataclasses of the method's own settings.

    Attributes:
        per_source_scale: Whether every source has its own λ (methods that sum), rather than one λ for the merged
            vector and a relative weight for each source (methods that vote or average).
        needs_fisher: Whether task vectors and tensor slices must carry Fisher information.
        negative_weights: Whether a source may have a negative weight.
        shares: Names of its settings that are shares of elements, in [0, 1].
        choices: Names of its settings that have a few known values, each with these values.
    """

    per_source_scale: bool = False
    needs_fisher: bool = False
    negative_weights: bool = True
    shares: Sequence[str] = ()
    choices: Sequence[tuple[str, Sequence[str]]] = ()

    @property
    def elementwise(self) -> bool:
        """Whether a row of the result depends on that row of the task vectors alone; a plain attribute will do.

        Such a method may be given any rows of a tensor. Any other method gets the whole tensor, unless it is a
        :class:`TwoPassMethod`.
        """
        return False

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the method's own settings; checked before any work."""
        owner, issues = type(self).__name__, []
        for name in self.shares:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                hint = "Write the share to keep, such as 0.2."
                issues.append(ConfigIssue(f"{owner}.{name}", value, "must lie in [0, 1]", hint))
        for name, known in self.choices:
            if (value := getattr(self, name)) not in known:
                problem = f"must be one of {', '.join(known)}"
                issues.append(ConfigIssue(f"{owner}.{name}", value, problem, "Choose one of these."))
        return issues

    @abstractmethod
    def merge(self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice) -> Tensor:
        """The change of one tensor, to be added to the target.

        Args:
            vectors: One task vector per source, in the order of the sources; at least one.
            tensor_slice: Which tensor this is, and which of its rows.

        Returns:
            float32, of the shape of the task vectors; zero where no mask selects.
        """


class TwoPassMethod(MergingMethod):
    """A method that needs a few numbers about a whole tensor, such as a threshold, before it can merge rows of it.

    It never holds the whole tensor: :meth:`first_pass` reads it in parts, then :meth:`merge_rows` merges any rows.
    """

    @abstractmethod
    def first_pass(self, parts: Parts) -> Any:  # noqa: ANN401 - each method's own
        """Whatever :meth:`merge_rows` has to know about the whole tensor.

        Args:
            parts: Iterates over the parts of the tensor, as often as it is called. Rows where no mask selects may be
                missing; they have no influence.
        """

    @abstractmethod
    def merge_rows(self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice, statistics: Any) -> Tensor:  # noqa: ANN401
        """The change of some rows, given the result of :meth:`first_pass`; otherwise as :meth:`merge`."""

    def merge(self, vectors: Sequence[TaskVector], tensor_slice: TensorSlice) -> Tensor:
        """The change of a whole tensor."""
        return self.merge_rows(vectors, tensor_slice, self.first_pass(lambda: [(vectors, tensor_slice)]))


def works_by_rows(method: MergingMethod) -> bool:
    """Whether ``method`` can merge some rows of a tensor at a time, once :func:`bind` has prepared it."""
    return method.elementwise or isinstance(method, TwoPassMethod)


def bind(method: MergingMethod, parts: Parts, scale: float) -> Merge:
    """Prepare a method for one tensor: returns a function that merges any rows of it and applies the scales.

    A method that sums gives each source its own λ. One that votes or averages weights each source by λ_m / λ and
    multiplies its result by λ; at λ = 0, where nothing moves, all sources weigh the same.

    Args:
        method: The method; unless it :func:`works_by_rows`, the whole tensor must be merged at once.
        parts: Iterates over the parts of the tensor; called for a :class:`TwoPassMethod` only.
        scale: λ of the transfer.

    Returns:
        A function like ``MergingMethod.merge`` that takes λ_m as the ``weight`` of each task vector.
    """

    def weigh(vectors: Sequence[TaskVector]) -> Sequence[TaskVector]:
        if method.per_source_scale:
            return vectors
        return [replace(vector, weight=vector.weight / scale if scale else 1.0) for vector in vectors]

    merge: Merge = method.merge
    if isinstance(method, TwoPassMethod):
        statistics = method.first_pass(lambda: ((weigh(vectors), tensor_slice) for vectors, tensor_slice in parts()))
        merge = partial(method.merge_rows, statistics=statistics)
    if method.per_source_scale:
        return merge
    return lambda vectors, tensor_slice: merge(weigh(vectors), tensor_slice) * scale


INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by size in bytes, to look at the bits of floats."""


def apply_change(target: Tensor, change: Tensor, selected: Tensor | None = None) -> Tensor:
    """θ = θ_trg + change where ``selected``, rounded once to the target's dtype; elsewhere every bit stays.

    So does every bit where the change is zero.

    >>> apply_change(torch.tensor([-0.0, 1.0]), torch.tensor([0.0, 0.5])).tolist()
    [-0.0, 1.5]

    Args:
        target: The target's values, any floating dtype.
        change: float32, of the shape of ``target``.
        selected: Bool, broadcastable to ``target``; ``None`` selects everything.

    Returns:
        A tensor of the target's shape and dtype (paper §4.2, equation 5).
    """
    changed = (target.float() + change).to(target.dtype)
    bits = INTEGERS[target.element_size()]
    # Adding zero may change float64, and negative zero, whose bits are the smallest integer. where() is slow.
    if target.numel() and (bits is torch.int64 or int(target.view(bits).min()) == torch.iinfo(bits).min):
        changed = torch.where(change == 0, target, changed)
    return changed if selected is None or bool(selected.all()) else torch.where(selected, changed, target)
