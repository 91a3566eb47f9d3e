"""How the weights of two siblings differ, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.compatibility import VocabularyMatch

_BLOCK = 16 * 1024 * 1024  # elements of each model that are in memory at once


class Rows(Protocol):
    """Weights that can be read some rows at a time, such as a :class:`CheckpointReader`."""

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows of the parameter ``name``; of a vector, elements. ``index`` is int64 ``[rows]``."""


class ModelRows:
    """The weights of a model in memory, read as those of a checkpoint are.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows of the parameter ``name``, a copy in the host's memory."""
        values = self._parameters[name].detach()
        return values[index.to(values.device)].cpu()


def row_deltas(
    name: str, shape: torch.Size, target: Rows, source: Rows, match: VocabularyMatch | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """θ_abl − θ_trg of one parameter, a block of rows at a time.

    Args:
        name: The parameter's name.
        shape: Its shape in the target.
        target: The target's weights.
        source: The source's weights.
        match: Which entry of the source's vocabulary is which of the target's; ``None`` where they are numbered alike.

    Yields:
        The rows, and their change, float32; zero in rows that the source lacks.
    """
    step = max(1, _BLOCK // max(1, shape[1:].numel()))
    for start in range(0, shape[0], step):
        place = slice(start, min(start + step, shape[0]))
        rows = torch.arange(place.start, place.stop)
        partners = match.rows[rows] if match is not None and name in match.names else rows
        change = source.rows(name, partners.clamp(min=0)).float() - target.rows(name, rows).float()
        change[partners < 0] = 0
        yield place, change


def channel_sums(
    values: Callable[[Tensor], Tensor],
    target: Rows,
    source: Rows,
    inventory: ChannelInventory,
    match: VocabularyMatch | None = None,
    quiet: bool = False,
) -> Tensor:
    """Σ of a function of the weights' change over all that a channel owns: its row, its bias, an embedding's column.

    Args:
        values: Gives one value for each element of a change, float32 in its own shape.
        target: The target's weights.
        source: The source's weights.
        inventory: The channels of the target, with what they own.
        match: As for :func:`row_changes`.
        quiet: Whether to show no progress.

    Returns:
        float64 ``[channels]``.

    Raises:
        ActError: A weight is NaN or infinite.
    """
    sums = torch.zeros(inventory.total, dtype=torch.float64)
    total = sum(inventory.shapes[owned.name].numel() for module in inventory.modules for owned in module.owned)
    with tqdm(desc="weight change", total=total, unit="", unit_scale=True, disable=quiet) as bar:
        for module, span in inventory.spans():
            for owned in module.owned:
                for rows, change in row_deltas(owned.name, inventory.shapes[owned.name], target, source, match):
                    place = rows if owned.dim == 0 else slice(None)
                    of_rows = values(change).reshape(len(change), -1)
                    sums[span][place] += of_rows.sum(1 - owned.dim, dtype=torch.float64)
                    bar.update(change.numel())
    return sums
