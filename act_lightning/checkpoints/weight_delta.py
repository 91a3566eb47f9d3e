"""How the weights of two siblings differ, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from act_lightning.channels import ChannelInventory, add_to_channels, as_matrix, matrix_shape
from act_lightning.checkpoints.compatibility import VocabularyMatch
from act_lightning.console import progress_bar

_BLOCK = 16 * 1024 * 1024  # elements of each model in memory at a time


class Rows(Protocol):
    """Weights that can be read some rows at a time, such as a ``CheckpointReader``."""

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows of the parameter ``name``, seen as a matrix; of a vector, elements. ``index`` is int64 ``[rows]``."""


class ModelRows:
    """Rows of a model in memory, copied to the CPU."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows of the parameter ``name``, as :meth:`Rows.rows`."""
        values = self._parameters[name].detach()
        return as_matrix(values)[index.to(values.device)].cpu()


def row_deltas(
    name: str, shape: torch.Size, target: Rows, source: Rows, match: VocabularyMatch | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """θ_abl − θ_trg of the parameter ``name``, seen as a matrix, a block of rows at a time.

    ``shape`` is that in the target; ``match`` is ``None`` if every token has the same row in both.

    Yields:
        The rows, and their float32 differences; zero in rows that the source lacks.
    """
    height, width = matrix_shape(shape)
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, height, step):
        block = slice(start, min(start + step, height))
        rows = torch.arange(block.start, block.stop)
        source_rows = match.rows[rows] if match is not None and name in match.names else rows
        delta = source.rows(name, source_rows.clamp(min=0)).float() - target.rows(name, rows).float()
        delta[source_rows < 0] = 0
        yield block, delta


def channel_sums(
    function: Callable[[Tensor], Tensor],
    target: Rows,
    source: Rows,
    inventory: ChannelInventory,
    match: VocabularyMatch | None = None,
    quiet: bool = False,
) -> Tensor:
    """For each channel, Σ ``function(θ_abl − θ_trg)`` over its weights: its row, its bias, an embedding's column.

    ``function`` is elementwise, float32 to float32; ``match`` is as for :func:`row_deltas`, and ``quiet`` hides the
    progress bar.

    Returns:
        float64 ``[channels]``.

    Raises:
        ActError: A weight is NaN or infinite.
    """
    sums = torch.zeros(inventory.total, dtype=torch.float64)
    total = sum(inventory.shapes[owned.name].numel() for module in inventory.modules for owned in module.owned)
    with progress_bar(desc="weight change", total=total, unit="", unit_scale=True, disable=quiet) as bar:
        for module, span in inventory.spans():
            for owned in module.owned:
                shape = inventory.shapes[owned.name]
                for rows, delta in row_deltas(owned.name, shape, target, source, match):
                    add_to_channels(sums[span], owned, shape, rows.start, function(delta))
                    bar.update(delta.numel())
    return sums
