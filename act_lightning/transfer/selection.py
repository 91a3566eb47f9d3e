"""Which channels of a source move: from scores and settings to one mask per ability, and their union."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
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
        tokens: Answer tokens that each ability's scores were measured on; 0 if no scores were needed.
        vocabulary: Maps the target's vocabulary entries to the source's, if they are numbered differently.
        whole: First names of the parameters without a channel that move as a whole.
        unreached: By ability, experts whose channels its mask selects although no answer token reached them: their
            numbers by module.
    """

    name: str
    model: str
    folder: Path
    scale: float
    ratio: float | Fraction
    masks: Mapping[str, Tensor]
    tokens: Mapping[str, int]
    vocabulary: VocabularyMatch | None = None
    whole: frozenset[str] = frozenset()
    unreached: Mapping[str, Mapping[str, list[int]]] = field(default_factory=dict)

    @property
    def mask(self) -> Tensor:
        """M(m), the channels that any ability selects, bool ``[channels]``."""
        return union(list(self.masks.values()))


def union_of_sources(sources: list[SelectedSource], total: int) -> Tensor:
    """The channels that move from any source, bool ``[total]``."""
    return union([source.mask for source in sources]) if sources else torch.zeros(total, dtype=torch.bool)


def count_selected(inventory: ChannelInventory, settings: TransferSettings, ratio: float | Fraction) -> int | None:
    """How many channels the mask of one ability selects; ``None`` if that depends on the scores.

    Args:
        inventory: The channels of the target.
        settings: Valid settings.
        ratio: p in (0, 1].

    Raises:
        ActError: A pattern matches no module, or nothing is left.
    """
    eligible = eligible_channels(inventory, settings.include, settings.exclude)
    if settings.selection == "all":
        return int(eligible.sum())
    if settings.share == "parameters":
        return None  # the scores decide how many channels fill that many parameters
    if settings.scope == "module":
        return sum(ratio_count(int(eligible[span].sum()), ratio) for _, span in inventory.spans())
    return ratio_count(int(eligible.sum()), ratio)


def selection_issues(
    inventory: ChannelInventory, settings: TransferSettings, ratios: Mapping[str, float | Fraction]
) -> list[ConfigIssue]:
    """Patterns that match no module, and ratios that select nothing, found before any work.

    Args:
        inventory: The channels of the target.
        settings: How to select.
        ratios: p of each source, by the name of its setting; an invalid ratio is reported elsewhere.
    """
    try:
        eligible = int(eligible_channels(inventory, settings.include, settings.exclude).sum())
    except ActError as error:
        return list(error.issues)
    return [
        ConfigIssue(setting, ratio, f"must select at least one of {eligible:,} channels", "Choose a larger ratio.")
        for setting, ratio in ratios.items()
        if not ratio_issues(ratio) and count_selected(inventory, settings, ratio) == 0
    ]


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
        scores: Saved scores, float32 ``[channels]`` per ability; ``None`` if the selection needs none.
        ratio: p of this source.
        settings: How to select.
        key: The seed of random selections, such as (seed, source).

    Returns:
        Bool ``[channels]`` per ability.

    Raises:
        ActError: A mask selects nothing.
    """
    eligible = eligible_channels(inventory, settings.include, settings.exclude)
    scorer = settings.scorer
    masks = {}
    for ability, values in scores.items():
        if settings.selection == "random":
            values = random_scores(inventory.total, *key, ability)
        else:
            values = None if values is None or scorer is None else scorer.ranked(values, inventory)
        if settings.selection == "all":
            mask = eligible
        elif values is None:
            raise TypeError(f"selection {settings.selection!r} needs scores")
        elif settings.share == "parameters":
            mask = top_by_parameters(values, ratio, eligible, inventory)
        elif settings.scope == "module":
            mask = top_per_module(values, ratio, eligible, inventory)
        else:
            mask = top_channels(values, ratio, eligible)
        if not mask.any():
            problem = f"must select at least one of {int(eligible.sum()):,} channels for {ability!r}"
            raise ActError(ConfigIssue("transfer.ratio", ratio, problem, "Choose a larger ratio."))
        masks[ability] = mask
    return masks


def selected_unreached(
    inventory: ChannelInventory, mask: Tensor, unreached: Mapping[str, list[int]]
) -> dict[str, list[int]]:
    """Those of the unreached experts of which ``mask``, bool ``[channels]``, selects a channel: numbers by module."""
    result: dict[str, list[int]] = {}
    for module, span in inventory.spans():
        owner = module.name.rpartition(".")[0]
        if module.experts and owner in unreached:
            selected = mask[span].view(module.experts, -1).any(1)
            numbers = {number for number in unreached[owner] if bool(selected[number])}
            result[owner] = sorted(numbers.union(result.get(owner, [])))
    return {name: numbers for name, numbers in result.items() if numbers}


def unowned_to_move(inventory: ChannelInventory, settings: TransferSettings) -> frozenset[str]:
    """The parameters without a channel that move: with ``selection: all`` those that patterns include and not exclude.

    A pattern may match the parameter's name or its module's.
    """

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(text, pattern) for text in (name, name.rpartition(".")[0]) for pattern in patterns)

    names = inventory.unowned if settings.selection == "all" else ()
    return frozenset(name for name in names if matches(name, settings.include) and not matches(name, settings.exclude))


def partner_channels(inventory: ChannelInventory, vocabulary: VocabularyMatch | None) -> dict[str, Tensor]:
    """For modules whose channels the source numbers differently: the source's number of each channel, or −1.

    Args:
        inventory: The channels of the target.
        vocabulary: Maps the target's vocabulary entries to the source's; ``None`` if they are numbered alike.

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


def drop_unmatched(inventory: ChannelInventory, mask: Tensor, vocabulary: VocabularyMatch | None) -> Tensor:
    """``mask`` (bool ``[channels]``) without the channels of lm_head whose token the source lacks."""
    mask, partners = mask.clone(), partner_channels(inventory, vocabulary)
    for module, span in inventory.spans():
        if module.name in partners:
            mask[span] &= partners[module.name] >= 0
    return mask
