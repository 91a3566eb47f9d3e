"""How many channels a mask will select, as far as that can be told before there are scores."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ActError, Fault
from act_lightning.masks import candidates, ratio_faults, share_of
from act_lightning.transfer.settings import TransferSettings


def count_selected(inventory: ChannelInventory, settings: TransferSettings, ratio: float | Fraction) -> int | None:
    """How many channels the mask of one ability selects; ``None`` where only the scores can tell.

    Args:
        inventory: The channels of the target.
        settings: How to select, without faults.
        ratio: p in (0, 1].

    Raises:
        ActError: If a pattern to exclude matches no module, or nothing is left.
    """
    allowed = candidates(inventory, settings.exclude)
    if settings.selection == "all":
        return int(allowed.sum())
    if settings.share == "parameters":
        return None  # the scores tell how many channels fill that many parameters
    if settings.scope == "module":
        return sum(share_of(int(allowed[span].sum()), ratio) for _, span in inventory.spans())
    return share_of(int(allowed.sum()), ratio)


def selection_faults(
    inventory: ChannelInventory, settings: TransferSettings, ratios: Mapping[str, float | Fraction]
) -> list[Fault]:
    """Patterns that match no module, and ratios that select nothing, found before any work.

    Args:
        inventory: The channels of the target.
        settings: How to select.
        ratios: p of each source, by the setting that says so; those that are no ratio at all are told elsewhere.
    """
    try:
        allowed = int(candidates(inventory, settings.exclude).sum())
    except ActError as error:
        return list(error.faults)
    return [
        Fault(setting, ratio, f"must select at least one of {allowed:,} channels", "Choose a larger ratio.")
        for setting, ratio in ratios.items()
        if not ratio_faults(ratio) and count_selected(inventory, settings, ratio) == 0
    ]
