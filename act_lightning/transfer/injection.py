"""Masked task-vector injection: new values for the selected elements of each parameter.

θ_i = θ_trg,i + Σ_m λ_m (θ_abl(m),i − θ_trg,i) · 1(i ∈ M(m))   (paper §4.3, https://arxiv.org/abs/2601.09398)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_

import torch
from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.weight_files import first_row_not_finite
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.merging.method import MergingMethod, Part, TensorSlice, apply_change, bind, works_by_rows
from act_lightning.transfer.importance import Importance
from act_lightning.transfer.selection import SelectedSource, union_of_sources
from act_lightning.transfer.task_vectors import SourceVectors

_IN_CACHE = 1 << 18  # elements: 1 MiB of float32 for each of target, source and change stays in a CPU's cache
_ELSEWHERE = 1 << 25  # what keeps an accelerator busy
_REMEMBERED = 1 << 25  # elements of task vectors, 128 MiB: those of a smaller tensor are read once, not once a pass

_CPU = torch.device("cpu")

ReadRows = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Step:
    """Some rows of a parameter: their numbers, the target's values, and what a method is given."""

    rows: Tensor
    target: Tensor
    part: Part


class MaskedInjection:
    """The transfer from all sources, one parameter at a time; use it as a context manager.

    Sources are read lazily, some rows at a time: of a parameter that is sliced by rows only, nothing but the selected
    rows. Several threads may change different parameters.

    Args:
        inventory: The channels of the target.
        sources: The sources with their masks, in order.
        method: How task vectors are merged.
        seed: Seed of random draws.
        scale: λ of the transfer, to which a method that votes or averages relates the sources' own.
        importance: Fisher information, for a method that asks for it.
    """

    def __init__(
        self,
        inventory: ChannelInventory,
        sources: Sequence[SelectedSource],
        method: MergingMethod,
        seed: int = 0,
        scale: float = 1.0,
        importance: Importance | None = None,
    ) -> None:
        self._method = method
        self._seed = seed
        self._scale = scale
        self._shapes = inventory.shapes
        self._elements = inventory.elements(union_of_sources(list(sources), inventory.total))
        saved = [None] * len(sources) if importance is None else importance.sources
        self._sources = [
            SourceVectors(source, inventory.elements(source.mask), inventory.shapes, its)
            for source, its in zip(sources, saved, strict=True)
        ]
        self._importance = None if importance is None else importance.target
        self._open = ExitStack()

    def __enter__(self) -> MaskedInjection:
        """Open the sources' checkpoints."""
        for source in self._sources:
            self._open.enter_context(source)
        if self._importance is not None:
            self._open.enter_context(self._importance)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the sources' checkpoints."""
        self._open.close()

    @property
    def names(self) -> list[str]:
        """First names of the parameters that change."""
        return list(self._elements)

    @property
    def bytes_read(self) -> int:
        """How many bytes of tensors have been read from the sources."""
        return sum(source.bytes_read for source in self._sources)

    def rows(self, name: str) -> Tensor:
        """Numbers of the rows of a parameter that :meth:`changes` gives, ascending int64; of a vector, of elements."""
        selection, count = self._elements[name], self._shapes[name][0]
        if selection.columns is not None or selection.rows is None or not works_by_rows(self._method):
            return torch.arange(count)
        return selection.rows.nonzero().squeeze(1)

    @torch.no_grad()
    def apply_(self, name: str, values: Tensor, first_row: int = 0, original: ReadRows | None = None) -> None:
        """Change the selected elements of a parameter, or of some consecutive rows of it, in place.

        Args:
            name: First name of the parameter.
            values: The target's original values, any floating dtype and device: the whole parameter or the rows from
                ``first_row`` on that this process holds.
            first_row: Number of the first row in the whole parameter.
            original: Gives the target's original values of any rows, for a method that must know the whole parameter
                where this process holds a part of it.

        Raises:
            ActError: If a value read or written is NaN or infinite, or a method that must know the whole parameter is
                given a part of it.
        """
        partly = len(values) < self._shapes[name][0]
        if partly and not self._method.elementwise and (original is None or not works_by_rows(self._method)):
            problem = f"must be given {name} whole, and this process holds {len(values)} of its rows"
            raise ActError(
                ConfigIssue("transfer.method", type(self._method).__name__, problem, "Transfer with `merge` first.")
            )

        def read(rows: Tensor) -> Tensor:
            part = values[_cut(rows - first_row)]
            _require_finite(part, name, "the target", rows)
            return part

        def known(rows: Tensor) -> Tensor:
            assert original is not None
            return original(rows).to(values.device, values.dtype)

        rows = self.rows(name)
        wanted = rows[_within(rows, first_row, len(values))]
        surveyed = known if partly and original is not None else None
        for changed_rows, changed in self.changes(name, read, wanted, values.device, surveyed):
            values[_cut(changed_rows - first_row)] = changed

    @torch.no_grad()
    def changes(
        self,
        name: str,
        read: ReadRows,
        rows: Tensor,
        device: torch.device = _CPU,
        survey: ReadRows | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """New values of some rows of a parameter, a few rows at a time.

        Args:
            name: First name of the parameter.
            read: Gives the target's original values of some rows, any floating dtype. It is asked for each row before
                that row is given back: once, or by methods that look at the whole first, more often.
            rows: The rows wanted, ascending, among those of :meth:`rows`; for a method that must know the whole
                parameter, all of these, unless there is a ``survey``.
            device: Where ``read`` puts them.
            survey: Gives, as ``read``, any rows, for a method that must know the whole parameter.

        Yields:
            Numbers of rows, and their new values in the dtype of the original ones.

        Raises:
            ActError: If a value read or written is NaN or infinite, or the method's change has another form.
        """
        steps = self._steps(name, read, rows, device)
        looked_at = steps if survey is None else self._steps(name, survey, self.rows(name), device)
        merge = bind(self._method, lambda: (step.part for step in looked_at()), self._scale)
        for step in steps():
            changed = _changed(step, self._of_its_form(merge(*step.part), step))
            _require_finite(changed, name, "the merged weights", step.rows)
            yield step.rows, changed
        for source in self._sources:
            source.release(name)

    def _of_its_form(self, change: Tensor, step: _Step) -> Tensor:
        """What the method gave, if it is what a method has to give; it may be a user's own."""
        if change.shape == step.target.shape and change.dtype == torch.float32:
            return change
        found = f"{str(change.dtype).removeprefix('torch.')} {list(change.shape)}"
        problem = f"must give a float32 {list(step.target.shape)} as change of {step.part[1].name}, and gives {found}"
        hint = "Correct its merge; see act_lightning.merging.MergingMethod."
        raise ActError(ConfigIssue("transfer.method", type(self._method).__name__, problem, hint))

    def _chunks(self, name: str, rows: Tensor, device: torch.device) -> Sequence[Tensor]:
        if not len(rows) or not works_by_rows(self._method):
            return [rows] if len(rows) else []
        elements = _IN_CACHE if device.type == "cpu" else _ELSEWHERE
        return torch.split(rows, max(1, elements // self._shapes[name][1:].numel()))

    def _steps(self, name: str, read: ReadRows, rows: Tensor, device: torch.device) -> Callable[[], Iterable[_Step]]:
        """What goes through the rows; for a method that goes several times, keeping them where they are few."""
        chunks = self._chunks(name, rows, device)

        def go() -> Iterator[_Step]:
            return (self._step(name, read(part), part) for part in chunks)

        elements = len(rows) * self._shapes[name][1:].numel() * len(self._sources)
        if self._method.elementwise or elements > _REMEMBERED:
            return go
        return cache(lambda: list(go()))

    def _step(self, name: str, target: Tensor, rows: Tensor) -> _Step:
        exact = target.float()
        vectors = [source.vector(name, exact, rows) for source in self._sources]
        own = None if self._importance is None else self._importance.rows(name, rows).to(target.device)
        return _Step(rows, target, (vectors, TensorSlice(name, self._seed, rows, own)))


def _changed(step: _Step, change: Tensor) -> Tensor:
    """The target with ``change`` added where any source's mask lets it move."""
    masks = [vector.mask for vector in step.part[0]]
    selected = [mask for mask in masks if mask is not None]
    if len(selected) < len(masks):  # one source moves everything
        return (step.target.float() + change).to(step.target.dtype)
    return apply_change(step.target, change, reduce(or_, selected))


def _within(rows: Tensor, first: int, count: int) -> Tensor:
    return (rows >= first) & (rows < first + count)


def _cut(rows: Tensor) -> Tensor | slice:
    """The rows as a slice where they lie side by side: a view instead of a copy."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def _require_finite(values: Tensor, name: str, where: str, rows: Tensor) -> None:
    number = first_row_not_finite(values)
    if number is not None:
        problem = f"must be finite in {where}, and row {int(rows[number])} holds NaN or infinity"
        raise ActError(
            ConfigIssue(f"parameter {name}", "NaN or infinity", problem, "Check the checkpoint and the scale.")
        )
