"""The task vector of one source for some rows of a parameter, read from disk: no row is read that does not move."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor

from act_lightning.channels import ElementSelection
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.merging.method import TaskVector
from act_lightning.transfer.importance import SavedFisher
from act_lightning.transfer.selection import SelectedSource

_NOTHING = ElementSelection()


class SourceVectors:
    """The task vectors δ = θ_abl − θ_trg of one source, restricted to its mask; use it as a context manager.

    Args:
        source: The source with its mask.
        elements: What that mask selects of each parameter.
        shapes: The target's shape of each parameter.
        importance: Its Fisher information, for a method that asks for it.
    """

    def __init__(
        self,
        source: SelectedSource,
        elements: Mapping[str, ElementSelection],
        shapes: Mapping[str, torch.Size],
        importance: SavedFisher | None = None,
    ) -> None:
        self._source = source
        self._importance = importance
        self._open = ExitStack()
        self._shapes = {name: tuple(shapes[name]) for name in elements}
        self._elements = elements
        self._reader: CheckpointReader | None = None

    def __enter__(self) -> SourceVectors:
        """Open the checkpoint.

        Raises:
            ActError: A parameter that moves is not in it, or in another shape.
        """
        self._reader = CheckpointReader(self._source.folder)
        raise_if_any(_shape_issues(self._source, self._reader, self._shapes))
        if self._importance is not None:
            self._open.enter_context(self._importance)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the checkpoint."""
        self._open.close()
        self.reader.close()

    @property
    def reader(self) -> CheckpointReader:
        """The open checkpoint."""
        assert self._reader is not None, "use it as a context manager"
        return self._reader

    @property
    def bytes_read(self) -> int:
        """How many bytes of tensors have been read."""
        return self.reader.bytes_read

    def release(self, name: str) -> None:
        """Give back what memory the reading of a parameter has taken."""
        self.reader.release(name)

    def vector(self, name: str, target: Tensor, rows: Tensor) -> TaskVector:
        """The task vector of some rows of a parameter.

        Args:
            name: First name of the parameter.
            target: The target's values of these rows, float32 ``[rows, …]``, any device.
            rows: Their numbers in the whole parameter, ascending int64.

        Raises:
            ActError: If a value read is NaN or infinite.
        """
        selection = self._elements.get(name, _NOTHING)
        mask, moving = _element_mask(selection, rows, target.ndim), _moving(selection, rows)
        numbers = self._numbers(name, rows)
        if bool((numbers < 0).any()):
            paired = numbers >= 0
            moving &= paired
            in_row = paired.view(-1, *[1] * (target.ndim - 1))
            mask = in_row if mask is None else mask & in_row
        delta = self._delta(name, target, numbers, moving)
        mask = None if mask is None else mask.to(target.device)
        importance = None if self._importance is None else self._importance.rows(name, numbers).to(target.device)
        return TaskVector(delta, self._source.scale, mask, self._source.name, importance)

    def _numbers(self, name: str, rows: Tensor) -> Tensor:
        """The source's number of each row, −1 where it has none."""
        match = self._source.vocabulary
        return rows if match is None or name not in match.names else match.rows[rows]

    def _delta(self, name: str, target: Tensor, numbers: Tensor, moving: Tensor) -> Tensor:
        """θ_abl − θ_trg of the rows that move, and zeros."""
        if bool(moving.all()):
            return self.reader.rows(name, numbers).to(target.device).float().sub_(target)
        delta = torch.zeros_like(target)
        if bool(moving.any()):
            here = moving.nonzero().squeeze(1)
            there = here.to(target.device)
            delta[there] = self.reader.rows(name, numbers[here]).to(target.device).float() - target[there]
        return delta


def _shape_issues(
    source: SelectedSource, reader: CheckpointReader, shapes: Mapping[str, tuple[int, ...]]
) -> list[ConfigIssue]:
    """Parameters that the source lacks or has in another shape; where entries are matched, any number will do."""
    stored, match = reader.described.shapes, source.vocabulary
    matched = match.names if match is not None else frozenset()
    wrong = [
        name
        for name, shape in shapes.items()
        if _without(stored.get(name), name in matched) != _without(shape, name in matched)
    ]
    if match is not None:
        wrong += [name for name in matched & shapes.keys() if shapes[name][0] != len(match.rows)]
    if not wrong:
        return []
    problem = f"must have the target's parameters in the target's shapes, unlike {', '.join(wrong[:5])}"
    return [
        ConfigIssue("profile.sources", source.model, problem, "Choose a sibling: a model tuned from the same base.")
    ]


def _without(shape: tuple[int, ...] | None, entries: bool) -> tuple[int, ...] | None:
    return shape[1:] if shape is not None and entries else shape


def _moving(selection: ElementSelection, rows: Tensor) -> Tensor:
    """The rows of which any element is selected, bool ``[rows]``."""
    if selection.columns is not None and bool(selection.columns.any()):
        return torch.ones(len(rows), dtype=torch.bool)
    return torch.zeros(len(rows), dtype=torch.bool) if selection.rows is None else selection.rows[rows]


def _element_mask(selection: ElementSelection, rows: Tensor, ndim: int) -> Tensor | None:
    """What ``selection`` selects in these rows: bool, broadcastable to ``[rows, …]``; ``None`` for all of it."""
    mask = torch.zeros(len(rows), dtype=torch.bool) if selection.rows is None else selection.rows[rows]
    if bool(mask.all()) or (selection.columns is not None and bool(selection.columns.all())):
        return None
    mask = mask.view(-1, *[1] * (ndim - 1))
    return mask if selection.columns is None else mask | selection.columns
