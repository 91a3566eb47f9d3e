"""Channels to compare the selected ones with: as many at random, and as many of the same layers and modules."""

from __future__ import annotations

import torch
from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.masks import random_scores


def random_channels(mask: Tensor, *key: object) -> Tensor:
    """As many channels as ``mask`` selects, drawn from all of the model's.

    Args:
        mask: Bool ``[channels]``.
        key: What is drawn from, such as a seed and a name.

    Returns:
        Bool ``[channels]``.
    """
    drawn = torch.zeros_like(mask)
    drawn[torch.topk(random_scores(mask.numel(), "random", *key), int(mask.sum())).indices] = True
    return drawn


def like_by_module(mask: Tensor, inventory: ChannelInventory, *key: object) -> Tensor:
    """As many channels of every module, so of every layer and type, as ``mask`` selects of it.

    They are drawn from those that ``mask`` leaves; where it takes more than half of a module, the rest is made up from
    its own.

    Args:
        mask: Bool ``[channels]``.
        inventory: The channels of the model.
        key: What is drawn from, such as a seed and a name.

    Returns:
        Bool ``[channels]``.
    """
    order = random_scores(mask.numel(), "like by module", *key) + (~mask).float()  # what is left comes first
    drawn = torch.zeros_like(mask)
    for _, span in inventory.spans():
        drawn[span.start + torch.topk(order[span], int(mask[span].sum())).indices] = True
    return drawn
