"""What a merging method is: a pure function from masked task vectors of one tensor to its change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from act_lightning.errors import ConfigIssue
from act_lightning.merging.bits import masked


@dataclass(frozen=True)
class TaskVector:
    """The change that one source proposes for one tensor, θ_abl − θ_trg.

    Attributes:
        delta: float32, any shape; the same for all sources of a tensor.
        weight: λ of this source, or its weight in vote and mean for methods that vote.
        mask: Bool, broadcastable to ``delta``: the elements that may move; ``None`` means all.
        source: Name of the source, for random draws.
        importance: The source's Fisher information, float32, of the shape of ``delta``; only for methods that ask.
    """

    delta: Tensor
    weight: float = 1.0
    mask: Tensor | None = None
    source: str = ""
    importance: Tensor | None = None

    def restricted(self) -> Tensor:
        """``delta`` with zeros outside the mask."""
        return self.delta if self.mask is None else masked(self.delta, self.mask)


@dataclass(frozen=True)
class TensorSlice:
    """Which tensor is merged and which of its rows, so that random draws depend on nothing else.

    Attributes:
        name: Full name of the parameter.
        seed: Seed of the run.
        rows: Numbers of the rows of the whole tensor that the task vectors hold, ``[rows]`` int64, ascending; of a
            vector, of its elements. ``None``: all of them.
        importance: The target's Fisher information at these rows, float32; only for methods that ask.
    """

    name: str
    seed: int = 0
    rows: Tensor | None = field(default=None, compare=False)
    importance: Tensor | None = field(default=None, compare=False)


Part: TypeAlias = tuple[Sequence[TaskVector], TensorSlice]
Parts: TypeAlias = Callable[[], Iterable[Part]]  # a call goes through the parts of a tensor, rows ascending
Merge: TypeAlias = Callable[[Sequence[TaskVector], TensorSlice], Tensor]


class MergingMethod(ABC):
    """A merging method; subclasses are dataclasses of the method's own settings.

    Attributes:
        weighs_each: Whether every source has a λ of its own (methods that sum), rather than one λ for the merged
            vector and a relative weight for each source (methods that vote or average).
        needs_importance: Whether task vectors and place must carry Fisher information.
        negative_weights: Whether a source may weigh less than nothing.
    """

    weighs_each: bool = False
    needs_importance: bool = False
    negative_weights: bool = True

    @property
    def elementwise(self) -> bool:
        """Whether a row of the result depends on that row of the task vectors alone; a plain attribute will do.

        Such a method may be given any rows of a tensor; any other is given the whole tensor, unless it is a
        :class:`TwoPassMethod`.
        """
        return False

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the method's own settings; looked for before any work."""
        return []

    @abstractmethod
    def merge(self, vectors: Sequence[TaskVector], place: TensorSlice) -> Tensor:
        """The change of one tensor, to be added to the target.

        Args:
            vectors: One task vector a source, in the order of the sources; at least one.
            place: Which tensor this is, and which of its rows.

        Returns:
            float32, of the shape of the task vectors; zero where no mask selects.
        """


class TwoPassMethod(MergingMethod):
    """A method that needs a few numbers about a whole tensor, such as a threshold, before it can merge any rows of it.

    It never holds the tensor: :meth:`survey` goes through it in parts, and :meth:`merge_rows` merges any rows.
    """

    @abstractmethod
    def survey(self, parts: Parts) -> Any:  # noqa: ANN401 - each method's own
        """What has to be known of the whole tensor.

        Args:
            parts: Goes through the parts of the tensor, as often as it is called. Rows where no mask selects may be
                left out; they have no influence.
        """

    @abstractmethod
    def merge_rows(self, vectors: Sequence[TaskVector], place: TensorSlice, survey: Any) -> Tensor:  # noqa: ANN401
        """The change of some rows of the tensor that was surveyed; otherwise as :meth:`merge`."""

    def merge(self, vectors: Sequence[TaskVector], place: TensorSlice) -> Tensor:
        """The change of a whole tensor."""
        return self.merge_rows(vectors, place, self.survey(lambda: [(vectors, place)]))


def works_by_rows(method: MergingMethod) -> bool:
    """Whether ``method`` can merge some rows of a tensor at a time, once it is made ready by :func:`ready`."""
    return method.elementwise or isinstance(method, TwoPassMethod)


def bind(method: MergingMethod, parts: Parts, scale: float) -> Merge:
    """The method made ready for one tensor: a function that merges any rows of it, scales included.

    A method that sums gives each source its own λ. One that votes or averages gets λ_m / λ as the weight of a source,
    and its result is multiplied by λ.

    Args:
        method: The method; unless it :func:`works_by_rows`, the whole tensor must be merged at once.
        parts: Goes through the parts of the tensor; called for a :class:`TwoPassMethod` only.
        scale: λ of the transfer.

    Returns:
        A function of task vectors, each with its λ_m as ``weight``, and of their place; as ``MergingMethod.merge``.
    """
    if method.weighs_each:
        return _surveyed(method, parts)
    inner = _surveyed(method, lambda: ((_relative(vectors, scale), place) for vectors, place in parts()))
    return lambda vectors, place: inner(_relative(vectors, scale), place) * scale


def _surveyed(method: MergingMethod, parts: Parts) -> Merge:
    if isinstance(method, TwoPassMethod):
        return partial(method.merge_rows, survey=method.survey(parts))
    return method.merge


def _relative(vectors: Sequence[TaskVector], scale: float) -> list[TaskVector]:
    """Each λ_m as a weight relative to λ; at λ = 0, where nothing moves, all weigh the same."""
    return [replace(vector, weight=vector.weight / scale if scale else 1.0) for vector in vectors]


def apply_change(target: Tensor, change: Tensor, selected: Tensor) -> Tensor:
    """θ = θ_trg + change where ``selected``, rounded once to the target's dtype; elsewhere every bit stays.

    Args:
        target: The target's values, any floating dtype.
        change: float32, of the shape of ``target``.
        selected: Bool, broadcastable to ``target``.

    Returns:
        A tensor of the target's shape and dtype (paper §4.2, equation 5).
    """
    changed = (target.float() + change).to(target.dtype)
    return changed if bool(selected.all()) else torch.where(selected, changed, target)  # where takes its time
