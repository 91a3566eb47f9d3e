"""Which channels of a source move: from saved scores and settings to one mask per ability, and their union."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints import VocabularyMatch
from act_lightning.errors import ActError, Fault
from act_lightning.masks import candidates, random_scores, top, top_by_parameters, top_per_module, union
from act_lightning.transfer.settings import TransferSettings


@dataclass(frozen=True)
class SelectedSource:
    """A source with the channels that move from it.

    Attributes:
        name: The source's name.
        model: How the user named its model.
        folder: Its checkpoint.
        scale: λ of this source.
        ratio: p of this source.
        masks: Bool ``[channels]`` per ability.
        tokens: Answer tokens that each ability's scores were measured on; 0 where no scores were needed.
        vocabulary: Which of its entries is which of the target's, where they are not numbered alike.
    """

    name: str
    model: str
    folder: Path
    scale: float
    ratio: float | Fraction
    masks: Mapping[str, Tensor]
    tokens: Mapping[str, int]
    vocabulary: VocabularyMatch | None = None

    @property
    def mask(self) -> Tensor:
        """M(m), the channels that any ability selects, bool ``[channels]``."""
        return union(list(self.masks.values()))


def select(
    inventory: ChannelInventory,
    scores: Mapping[str, Tensor | None],
    ratio: float | Fraction,
    settings: TransferSettings,
    key: tuple[object, ...],
) -> dict[str, Tensor]:
    """One mask per ability.

    Args:
        inventory: The channels of the target.
        scores: Saved scores, float32 ``[channels]`` per ability; ``None`` where the selection needs none.
        ratio: p of this source.
        settings: How to select.
        key: What random selections are drawn from, such as (seed, source).

    Returns:
        Bool ``[channels]`` per ability.

    Raises:
        ActError: If a mask selects nothing.
    """
    allowed = candidates(inventory, settings.exclude)
    masks = {}
    for ability, values in scores.items():
        mask = _select_one(inventory, values, ratio, settings, allowed, (*key, ability))
        if not mask.any():
            rule = f"must select at least one of {int(allowed.sum()):,} channels for {ability!r}"
            raise ActError(Fault("transfer.ratio", ratio, rule, "Choose a larger ratio."))
        masks[ability] = mask
    return masks


def _select_one(
    inventory: ChannelInventory,
    scores: Tensor | None,
    ratio: float | Fraction,
    settings: TransferSettings,
    allowed: Tensor,
    key: tuple[object, ...],
) -> Tensor:
    if settings.selection == "all":
        return allowed
    drawn = settings.selection == "random"
    values = random_scores(inventory.total, *key) if drawn else _ranked(scores, settings, inventory)
    if settings.share == "parameters":
        return top_by_parameters(values, ratio, allowed, inventory)
    if settings.scope == "module":
        return top_per_module(values, ratio, allowed, inventory)
    return top(values, ratio, allowed)


def _ranked(scores: Tensor | None, settings: TransferSettings, inventory: ChannelInventory) -> Tensor:
    """What channels are ranked by, from saved scores."""
    if scores is None or settings.scorer is None:
        raise TypeError(f"selection {settings.selection!r} needs scores")
    return settings.scorer.ranked(scores, inventory)


def joined(sources: list[SelectedSource], total: int) -> Tensor:
    """The channels that move from any source, bool ``[total]``."""
    return union([source.mask for source in sources]) if sources else torch.zeros(total, dtype=torch.bool)


def having_partners(inventory: ChannelInventory, mask: Tensor, vocabulary: VocabularyMatch | None) -> Tensor:
    """``mask`` (bool ``[channels]``) without the channels of lm_head whose token the source lacks.

    Args:
        inventory: The channels of the target.
        mask: The channels chosen.
        vocabulary: Which entry of the source is which of the target's; ``None`` where they are numbered alike.
    """
    mask, partners = mask.clone(), partner_channels(inventory, vocabulary)
    for module, span in inventory.spans():
        if module.name in partners:
            mask[span] &= partners[module.name] >= 0
    return mask


def partner_channels(inventory: ChannelInventory, vocabulary: VocabularyMatch | None) -> dict[str, Tensor]:
    """The source's number of each channel, −1 where it lacks it, of modules whose channels it numbers otherwise.

    Args:
        inventory: The channels of the target.
        vocabulary: Which entry of the source is which of the target's; ``None`` where they are numbered alike.

    Returns:
        int64 ``[count]`` by module name: lm_head's, if any.
    """
    if vocabulary is None:
        return {}
    return {
        module.name: vocabulary.rows
        for module in inventory.modules
        if any(owned.dim == 0 and owned.name in vocabulary.names for owned in module.owned)
        and module.count == len(vocabulary.rows)
    }
