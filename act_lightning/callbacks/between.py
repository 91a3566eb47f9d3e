"""A model on the straight line between target and source, where gradients are taken."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_lightning.callbacks.target import Target
from act_lightning.channels import ChannelInventory, ElementSelection
from act_lightning.checkpoints import CheckpointReader, load_model, match_folders, row_changes

_BLOCK = 16 * 1024 * 1024  # elements that are in memory in float32 at once


class Between:
    """θ_trg + α (θ_abl − θ_trg), with the target's config; the target itself is left as it is.

    Beside the model it keeps the task vector, both in the precision of the comparison: as much as a pair takes. Rows of
    both models are read from disk a block at a time. Rows that the source lacks stay the target's.

    Attributes:
        model: The model, at θ_trg at first.
        changes: θ_abl − θ_trg by first name of the parameter, on the model's device; differences are taken in float32.
    """

    def __init__(self, model: PreTrainedModel, target: Target, channels: ChannelInventory) -> None:
        self.model = model
        self.changes: dict[str, Tensor] = {}
        self._target = target
        self._channels = channels

    @torch.no_grad()
    def read(self, folder: Path) -> None:
        """Take another source."""
        match = match_folders(self._target.folder, folder) if self._target.folder else None
        self.changes = {}
        with self._target.rows() as ours, CheckpointReader(folder) as theirs:
            for name, shape in self._channels.shapes.items():
                change = torch.empty_like(self.model.get_parameter(name), requires_grad=False)
                for rows, values in row_changes(name, shape, ours, theirs, match):
                    change[rows] = values.to(change.device, change.dtype)
                self.changes[name] = change
                theirs.release(name)

    @torch.no_grad()
    def place(self, alpha: float, moved: Mapping[str, ElementSelection] | None = None) -> None:
        """Put the model where gradients are wanted.

        Args:
            alpha: α.
            moved: Elements that have the source's value already, whatever α.
        """
        with self._target.rows() as ours:
            for name, change in self.changes.items():
                values = self.model.get_parameter(name).data
                step = change.mul(alpha)
                if moved and name in moved:
                    step = torch.where(moved[name].expand(change.shape).to(change.device), change, step)
                for rows in torch.arange(len(values)).split(max(1, _BLOCK // max(1, change[0].numel()))):
                    place = slice(int(rows[0]), int(rows[-1]) + 1)
                    original = ours.rows(name, rows).to(values.device).float()
                    values[place] = original.add_(step[place].float()).to(values.dtype)


@contextmanager
def between(target: Target, channels: ChannelInventory, device: torch.device) -> Iterator[Between]:
    """A model of our own beside the target: read from its folder, or a copy of the one in memory."""
    if target.model is None:
        assert target.folder is not None
        yield Between(load_model(target.folder, target.dtype, device), target, channels)
    else:
        own = copy.deepcopy(target.model)
        nn.Module.to(own, device)
        own.train(False)
        yield Between(own, target, channels)
