"""Masked task-vector injection: new values for the selected elements of each parameter.

θ_i = θ_trg,i + Σ_m λ_m (θ_abl(m),i − θ_trg,i) · 1(i ∈ M(m))   (paper §4.3, https://arxiv.org/abs/2601.09398)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from act_lightning.channels import ChannelInventory, ElementSelection, as_matrix, matrix_shape
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import first_row_not_finite
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.merging.method import (
    INTEGERS,
    MergingMethod,
    TaskVector,
    TensorSlice,
    apply_change,
    bind,
    works_by_rows,
)
from act_lightning.transfer.saved_fisher import SavedFisher, TransferFisher
from act_lightning.transfer.selection import SelectedSource, union_of_sources

_CPU_CHUNK = 1 << 18  # elements: 1 MiB of float32 for each of target, source and change stays in a CPU's cache
_DEVICE_CHUNK = 1 << 25  # what keeps an accelerator busy
_MOST_REMEMBERED = 1 << 25  # elements of task vectors, 128 MiB: smaller tensors are read once for both passes

_CPU = torch.device("cpu")

ReadRows = Callable[[Tensor], Tensor]


class Rounding(NamedTuple):
    """How many values a transfer gave, which of these should differ from the target's, and which of these do not.

    Attributes:
        values: All values given, selected or not.
        moved: Those with a change other than zero.
        unchanged: Those of them that are the target's once rounded.
    """

    values: int = 0
    moved: int = 0
    unchanged: int = 0


def count_rounding(target: Tensor, change: Tensor, changed: Tensor, dtype: torch.dtype) -> Rounding:
    """What rounding to ``dtype`` does to some values; ``change`` is zero where nothing is selected.

    >>> target = torch.tensor([1.0, 1.0, 1.0], dtype=torch.bfloat16)
    >>> change = torch.tensor([-0.0, 0.001, 0.1])
    >>> count_rounding(target, change, apply_change(target, change), torch.bfloat16)
    Rounding(values=3, moved=2, unchanged=1)
    """
    # Counting integers takes a tenth of the time of counting floats; a negative zero has one bit, the sign.
    bits, change_bits = INTEGERS[dtype.itemsize], change.view(torch.int32)
    if change.numel() and int(change_bits.min()) == torch.iinfo(torch.int32).min:
        change_bits = change_bits << 1
    moved = torch.count_nonzero(change_bits)
    different = torch.count_nonzero(target.to(dtype).view(bits) ^ changed.to(dtype).view(bits))
    return Rounding(change.numel(), int(moved), max(0, int(moved) - int(different)))


class SourceVectors:
    """The task vectors δ = θ_abl − θ_trg of one source, restricted to its mask; rows that do not move are not read.

    Args:
        source: The source with its mask.
        reader: Its open checkpoint.
        inventory: The channels of the target.
        fisher: Its open Fisher information, for a method that needs it.

    Raises:
        ActError: The checkpoint lacks a parameter that moves, or has it in another shape.
    """

    def __init__(
        self,
        source: SelectedSource,
        reader: CheckpointReader,
        inventory: ChannelInventory,
        fisher: SavedFisher | None = None,
    ) -> None:
        self.reader = reader
        self._source = source
        self._fisher = fisher
        self._elements, self._shapes = inventory.elements(source.mask, source.whole), inventory.shapes
        stored, vocabulary = reader.spec.shapes, source.vocabulary
        mismatched = []
        for name in self._elements:
            shape = inventory.shapes[name]
            if vocabulary is not None and name in vocabulary.names:  # rows are matched, so any number of them will do
                matches = name in stored and stored[name][1:] == shape[1:] and shape[0] == len(vocabulary.rows)
            else:
                matches = stored.get(name) == shape
            if not matches:
                mismatched.append(name)
        if mismatched:
            problem = f"must have the target's parameters in the target's shapes, unlike {', '.join(mismatched[:5])}"
            hint = "Choose a sibling: a model tuned from the same base."
            raise ActError(ConfigIssue("profile.sources", source.model, problem, hint))

    def vector(self, name: str, target: Tensor, rows: Tensor) -> TaskVector:
        """The task vector of some rows of a parameter.

        Args:
            name: First name of the parameter.
            target: The target's values of these rows, float32 ``[rows, width]``, of a vector ``[rows]``; any device.
            rows: Their numbers in the whole parameter, seen as a matrix, ascending int64.

        Raises:
            ActError: A value read is NaN or infinite.
        """
        selection, as_column = self._elements.get(name, ElementSelection()), (-1, *[1] * (target.ndim - 1))
        by_row = torch.zeros(len(rows), dtype=torch.bool) if selection.rows is None else selection.rows[rows]
        moving, columns = by_row, selection.columns
        if columns is not None:  # those of each row's group, or of all rows
            groups = matrix_shape(self._shapes[name])[0] // len(columns)
            columns = columns[rows // groups] if len(columns) > 1 else columns
            moving = by_row | columns.any(1)
        mask = None  # every element of these rows
        if not (bool(by_row.all()) or (columns is not None and bool(columns.all()))):
            mask = by_row.view(as_column) if columns is None else by_row.view(as_column) | columns
        vocabulary = self._source.vocabulary
        numbers = rows if vocabulary is None or name not in vocabulary.names else vocabulary.rows[rows]
        matched = numbers >= 0
        if not bool(matched.all()):
            moving = moving & matched
            mask = matched.view(as_column) if mask is None else mask & matched.view(as_column)
        if bool(moving.all()):
            delta = self.reader.rows(name, numbers).to(target.device).float().sub_(target)
        else:
            delta = torch.zeros_like(target)
            index = moving.nonzero().squeeze(1)
            if len(index):
                on_device = index.to(target.device)
                values = self.reader.rows(name, numbers[index]).to(target.device).float()
                delta[on_device] = values - target[on_device]
        mask = None if mask is None else mask.to(target.device)
        fisher = None if self._fisher is None else self._fisher.rows(name, numbers).to(target.device)
        return TaskVector(delta, self._source.scale, mask, self._source.name, fisher)


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a parameter: their numbers, the target's values, and the method's input."""

    rows: Tensor
    target: Tensor
    vectors: Sequence[TaskVector]
    tensor_slice: TensorSlice


class MaskedInjection:
    """The transfer from all sources, one parameter at a time; use it as a context manager.

    Sources are read lazily, some rows at a time: of a parameter that is sliced by rows only, nothing but the selected
    rows. Several threads may change different parameters.

    Args:
        inventory: The channels of the target.
        sources: The sources with their masks, in order.
        method: How task vectors are merged.
        seed: Seed of random draws.
        scale: λ of the transfer; sources are weighted relative to it by a method that votes or averages.
        fisher: Fisher information, for a method that needs it.

        dtype: The precision that values are stored in later, if it is lower than that of the values given.

    Attributes:
        names: First names of the parameters that change.
        rounding: What rounding did to the values that were changed so far.
    """

    def __init__(
        self,
        inventory: ChannelInventory,
        sources: Sequence[SelectedSource],
        method: MergingMethod,
        seed: int = 0,
        scale: float = 1.0,
        fisher: TransferFisher | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.rounding = Rounding()
        self._lock = Lock()
        self._dtype = dtype
        self._inventory = inventory
        self._selected = list(sources)
        self._method = method
        self._seed = seed
        self._scale = scale
        self._fisher = fisher
        whole = set[str]().union(*(source.whole for source in self._selected))
        self._elements = inventory.elements(union_of_sources(self._selected, inventory.total), whole)
        self.names = list(self._elements)
        self._sources: list[SourceVectors] = []
        self._stack = ExitStack()

    def __enter__(self) -> MaskedInjection:
        """Open the sources' checkpoints.

        Raises:
            ActError: A source lacks a parameter that moves, or has it in another shape.
        """
        self._sources = []
        with ExitStack() as stack:
            for i, source in enumerate(self._selected):
                reader = stack.enter_context(CheckpointReader(source.folder))
                fisher = None if self._fisher is None else stack.enter_context(self._fisher.sources[i])
                self._sources.append(SourceVectors(source, reader, self._inventory, fisher))
            if self._fisher is not None:
                stack.enter_context(self._fisher.target)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the sources' checkpoints."""
        self._stack.close()

    @property
    def bytes_read(self) -> int:
        """How many bytes of tensors have been read from the sources."""
        return sum(source.reader.bytes_read for source in self._sources)

    @property
    def value_count(self) -> int:
        """How many values :meth:`changes` gives for the whole model."""
        return sum(len(self.rows(name)) * matrix_shape(self._inventory.shapes[name])[1] for name in self.names)

    def rows(self, name: str) -> Tensor:
        """Row numbers of a parameter, seen as a matrix, for which :meth:`changes` gives values, ascending int64."""
        height = matrix_shape(self._inventory.shapes[name])[0]
        return self._elements[name].touched_rows(height) if works_by_rows(self._method) else torch.arange(height)

    @torch.no_grad()
    def apply_(self, name: str, values: Tensor, first_row: int = 0, original: ReadRows | None = None) -> None:
        """Change the selected elements of a parameter, or of consecutive rows of it, in place.

        Args:
            name: First name of the parameter.
            values: The target's original values, any floating dtype and device, contiguous: the whole parameter, or
                what this process holds of its first dimension, from ``first_row`` on.
            first_row: Where in the first dimension of the whole parameter they begin.
            original: Reads the target's original values of any rows, for a method that needs the whole parameter when
                this process holds only part of it.

        Raises:
            ActError: A value read or written is NaN or infinite; or a method that needs the whole parameter gets part
                of it.
        """
        shape = self._inventory.shapes[name]
        partial, first_row, values = values.numel() < shape.numel(), first_row * shape[1:-1].numel(), as_matrix(values)
        if partial and not self._method.elementwise and original is None:
            problem = f"needs the whole of {name}, but this process holds only {len(values)} of its rows"
            hint = "Transfer with `merge` first."
            raise ActError(ConfigIssue("transfer.method", type(self._method).__name__, problem, hint))

        def read(rows: Tensor) -> Tensor:
            part = values[_as_slice(rows - first_row)]
            _require_finite(part, name, "the target", rows)
            return part

        def read_original(rows: Tensor) -> Tensor:
            assert original is not None
            return original(rows).to(values.device, values.dtype)

        def held(rows: Tensor) -> Tensor:
            return (rows >= first_row) & (rows < first_row + len(values))

        rows, read_merged = self.rows(name), read
        read_whole = read_original if partial and original is not None else None
        if read_whole is None or works_by_rows(self._method):
            rows = rows[held(rows)]
        else:
            read_merged = read_whole  # the rows that other processes hold are merged, too
        for changed_rows, changed in self.changes(name, read_merged, rows, values.device, read_whole):
            own = held(changed_rows)
            if bool(own.any()):
                values[_as_slice(changed_rows[own] - first_row)] = changed[own]

    @torch.no_grad()
    def changes(
        self,
        name: str,
        read: ReadRows,
        rows: Tensor,
        device: torch.device = _CPU,
        read_whole: ReadRows | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """New values of some rows of a parameter, a few rows at a time.

        Args:
            name: First name of the parameter.
            read: Reads the target's original values of some rows, any floating dtype. It is called for each row before
                that row's new values are given: once, or several times if the method needs several passes.
            rows: The rows to change, ascending, among those of :meth:`rows`; all of these if the method needs the whole
                parameter, unless there is a ``read_whole``.
            device: The device of what ``read`` returns.
            read_whole: Like ``read``, for any rows of the parameter, for a method that needs the whole parameter.

        Yields:
            Row numbers, and their new values in the dtype of the original ones.

        Raises:
            ActError: A value read or written is NaN or infinite, or the method's result has another shape or dtype.
        """
        chunks = self._chunks(name, read, rows, device)
        all_chunks = chunks if read_whole is None else self._chunks(name, read_whole, self.rows(name), device)
        merge = bind(self._method, lambda: ((c.vectors, c.tensor_slice) for c in all_chunks()), self._scale)
        for chunk in chunks():
            target, change = chunk.target, merge(chunk.vectors, chunk.tensor_slice)
            if change.shape != target.shape or change.dtype != torch.float32:  # the method may be a user's own
                result = f"{str(change.dtype).removeprefix('torch.')} {list(change.shape)}"
                problem = f"must give a float32 {list(target.shape)} as change of {name}, but gives {result}"
                hint = "Correct its merge; see act_lightning.merging.MergingMethod."
                raise ActError(ConfigIssue("transfer.method", type(self._method).__name__, problem, hint))
            masks = [vector.mask for vector in chunk.vectors if vector.mask is not None]
            moves_everything = len(masks) < len(chunk.vectors)  # from one source
            changed = apply_change(target, change, None if moves_everything else reduce(or_, masks))
            _require_finite(changed, name, "the merged weights", chunk.rows)
            rounding = count_rounding(target, change, changed, self._dtype or target.dtype)
            with self._lock:
                self.rounding = Rounding(*map(sum, zip(self.rounding, rounding, strict=True)))
            yield chunk.rows, changed
        for source in self._sources:
            source.reader.release(name)

    def _chunks(self, name: str, read: ReadRows, rows: Tensor, device: torch.device) -> Callable[[], Iterable[_Chunk]]:
        """A function that iterates over the rows; it remembers a small tensor for the second pass of a method."""
        width = matrix_shape(self._inventory.shapes[name])[1]
        parts: Sequence[Tensor] = [rows] if len(rows) else []
        if parts and works_by_rows(self._method):
            parts = torch.split(rows, max(1, (_CPU_CHUNK if device.type == "cpu" else _DEVICE_CHUNK) // width))

        def load(rows: Tensor) -> _Chunk:
            target = read(rows)
            exact = target.float()
            vectors = [source.vector(name, exact, rows) for source in self._sources]
            fisher = None if self._fisher is None else self._fisher.target.rows(name, rows).to(target.device)
            return _Chunk(rows, target, vectors, TensorSlice(name, self._seed, rows, fisher))

        if self._method.elementwise or len(rows) * width * len(self._sources) > _MOST_REMEMBERED:
            return lambda: map(load, parts)
        return cache(lambda: list(map(load, parts)))


def _as_slice(rows: Tensor) -> Tensor | slice:
    """Row numbers as a slice if they are consecutive, which gives a view instead of a copy."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def _require_finite(values: Tensor, name: str, where: str, rows: Tensor) -> None:
    number = first_row_not_finite(values)
    if number is not None:
        problem = f"must be finite in {where}, and row {int(rows[number])} holds NaN or infinity"
        hint = "Check the checkpoint and the scale."
        raise ActError(ConfigIssue(f"parameter {name}", "NaN or infinity", problem, hint))
