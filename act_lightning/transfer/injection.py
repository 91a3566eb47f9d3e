"""Masked task-vector injection: new values for the selected elements of each parameter, in place.

θ_i = θ_trg,i + Σ_m λ_m (θ_abl(m),i − θ_trg,i) · 1(i ∈ M(m))   (paper §4.3, https://arxiv.org/abs/2601.09398)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from act_lightning.channels import ChannelInventory, ElementSelection
from act_lightning.checkpoints import CheckpointReader
from act_lightning.errors import ActError, Fault
from act_lightning.merging import MergingMethod, TaskVector, TensorPlace, apply_change
from act_lightning.transfer.selection import SelectedSource, joined

_ELEMENTS_AT_ONCE = 1 << 25  # 128 MiB of float32 for each of target, source and change


class MaskedInjection:
    """The transfer from all sources, one parameter at a time; use it as a context manager.

    Sources are read lazily: of a parameter that is sliced by rows only, nothing but the selected rows.

    Args:
        inventory: The channels of the target.
        sources: The sources with their masks, in order.
        method: How task vectors are merged.
        seed: Seed of random draws.
    """

    def __init__(
        self, inventory: ChannelInventory, sources: Sequence[SelectedSource], method: MergingMethod, seed: int = 0
    ) -> None:
        self._method = method
        self._seed = seed
        self._sources = list(sources)
        self._elements = inventory.elements(joined(self._sources, inventory.total))
        self._elements_by_source = [inventory.elements(source.mask) for source in self._sources]
        self._readers: list[CheckpointReader] = []
        self._open = ExitStack()

    def __enter__(self) -> MaskedInjection:
        """Open the sources' checkpoints."""
        self._readers = [self._open.enter_context(CheckpointReader(source.folder)) for source in self._sources]
        return self

    def __exit__(self, *_: object) -> None:
        """Close the sources' checkpoints."""
        self._open.close()

    @property
    def names(self) -> list[str]:
        """First names of the parameters that change."""
        return list(self._elements)

    @torch.no_grad()
    def apply_(self, name: str, values: Tensor, first_row: int = 0) -> None:
        """Change the selected elements of a parameter, or of some consecutive rows of it, in place.

        Args:
            name: First name of the parameter.
            values: The target's original values, any floating dtype and device: the whole parameter or the rows from
                ``first_row`` on that this process holds.
            first_row: Number of the first row in the whole parameter.

        Raises:
            ActError: If a value read or written is NaN or infinite.
        """
        selection = self._elements[name]
        for rows in self._chunks(selection, values, first_row):
            local = (rows - first_row).to(values.device)
            part = values[local]
            _check_finite(part, name, "the target")
            merged = self._merge(name, part, rows)
            selected = _element_mask(selection, rows, part.ndim).to(part.device)
            changed = apply_change(part, merged, selected)
            _check_finite(changed, name, "the merged weights")
            values[local] = changed

    def _chunks(self, selection: ElementSelection, values: Tensor, first_row: int) -> Iterator[Tensor]:
        """The numbers of the rows to read: all at once, unless the method works element by element."""
        rows = torch.arange(first_row, first_row + len(values))
        if not self._method.elementwise:
            yield rows
            return
        if selection.columns is None and selection.rows is not None:
            rows = rows[selection.rows[rows]]
        if len(rows):
            yield from torch.split(rows, max(1, _ELEMENTS_AT_ONCE // values[0].numel()))

    def _merge(self, name: str, part: Tensor, rows: Tensor) -> Tensor:
        target = part.float()
        vectors = []
        for source, reader, elements in zip(self._sources, self._readers, self._elements_by_source, strict=True):
            mask = _element_mask(elements.get(name, ElementSelection()), rows, part.ndim).to(part.device)
            delta = reader.rows(name, rows).to(part.device).float() - target
            vectors.append(TaskVector(delta, source.scale, mask, source.name))
        return self._method.merge(vectors, TensorPlace(name, self._seed))


def _element_mask(selection: ElementSelection, rows: Tensor, ndim: int) -> Tensor:
    """What ``selection`` selects in these rows: bool, broadcastable to ``[len(rows), ...]``."""
    mask = torch.zeros(len(rows), dtype=torch.bool) if selection.rows is None else selection.rows[rows]
    mask = mask.view(-1, *[1] * (ndim - 1))
    return mask if selection.columns is None else mask | selection.columns


def _check_finite(values: Tensor, name: str, where: str) -> None:
    if not torch.isfinite(values).all():
        rule = f"must be finite in {where}"
        raise ActError(Fault(f"parameter {name}", "NaN or infinity", rule, "Check the checkpoint and the scale."))
