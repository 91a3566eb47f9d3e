"""Which channels of a source move: from scores and settings to one mask per ability, and their union."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.compatibility import VocabularyMatch
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.masks import (
    eligible_channels,
    random_scores,
    ratio_count,
    ratio_issues,
    top_by_parameters,
    top_channels,
    top_per_module,
    union,
)
from act_lightning.transfer.settings import TransferSettings


def count_selected(inventory: ChannelInventory, settings: TransferSettings, ratio: float | Fraction) -> int | None:
    """How many channels the mask of one ability selects; ``None`` where only the scores can tell.

    Args:
        inventory: The channels of the target.
        settings: How to select, without issues.
        ratio: p in (0, 1].

    Raises:
        ActError: If a pattern to exclude matches no module, or nothing is left.
    """
    allowed = eligible_channels(inventory, settings.exclude)
    if settings.selection == "all":
        return int(allowed.sum())
    if settings.share == "parameters":
        return None  # the scores tell how many channels fill that many parameters
    if settings.scope == "module":
        return sum(ratio_count(int(allowed[span].sum()), ratio) for _, span in inventory.spans())
    return ratio_count(int(allowed.sum()), ratio)


def selection_issues(
    inventory: ChannelInventory, settings: TransferSettings, ratios: Mapping[str, float | Fraction]
) -> list[ConfigIssue]:
    """Patterns that match no module, and ratios that select nothing, found before any work.

    Args:
        inventory: The channels of the target.
        settings: How to select.
        ratios: p of each source, by the setting that says so; those that are no ratio at all are told elsewhere.
    """
    try:
        allowed = int(eligible_channels(inventory, settings.exclude).sum())
    except ActError as error:
        return list(error.issues)
    return [
        ConfigIssue(setting, ratio, f"must select at least one of {allowed:,} channels", "Choose a larger ratio.")
        for setting, ratio in ratios.items()
        if not ratio_issues(ratio) and count_selected(inventory, settings, ratio) == 0
    ]


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
    allowed = eligible_channels(inventory, settings.exclude)
    masks = {}
    for ability, values in scores.items():
        mask = _select_one(inventory, values, ratio, settings, allowed, (*key, ability))
        if not mask.any():
            problem = f"must select at least one of {int(allowed.sum()):,} channels for {ability!r}"
            raise ActError(ConfigIssue("transfer.ratio", ratio, problem, "Choose a larger ratio."))
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
    return top_channels(values, ratio, allowed)


def _ranked(scores: Tensor | None, settings: TransferSettings, inventory: ChannelInventory) -> Tensor:
    """What channels are ranked by, from saved scores."""
    if scores is None or settings.scorer is None:
        raise TypeError(f"selection {settings.selection!r} needs scores")
    return settings.scorer.ranked(scores, inventory)


def union_of_sources(sources: list[SelectedSource], total: int) -> Tensor:
    """The channels that move from any source, bool ``[total]``."""
    return union([source.mask for source in sources]) if sources else torch.zeros(total, dtype=torch.bool)


def drop_unmatched(inventory: ChannelInventory, mask: Tensor, vocabulary: VocabularyMatch | None) -> Tensor:
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
