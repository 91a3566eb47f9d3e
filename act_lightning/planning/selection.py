"""How many channels the masks of a run will select, as far as that can be told without scores."""

from __future__ import annotations

from act_lightning.callbacks import AbilitySource
from act_lightning.channels import ChannelInventory
from act_lightning.errors import ActError, Fault
from act_lightning.masks import candidates, ratio_faults, share_of
from act_lightning.planning.run import Run


def selection_counts(run: Run, channels: ChannelInventory) -> dict[str, int | None]:
    """How many channels each ability's mask selects; ``None`` where only the scores can tell.

    Keyed by ability; by source and ability where several sources have one of that name. Without what settings that
    are refused would select.
    """
    if not _is_countable(run, channels):
        return {}
    names = [ability for source in run.sources for ability in source.abilities]
    return {
        ability if names.count(ability) == 1 else f"{source.label}/{ability}": _count(run, source, channels)
        for source in run.sources
        if not ratio_faults(_ratio(run, source))
        for ability in source.abilities
    }


def selection_faults(run: Run, channels: ChannelInventory | None) -> list[Fault]:
    """Patterns that match no module, and ratios that select nothing."""
    if channels is None or not run.sources:
        return []
    try:
        allowed = candidates(channels, run.transfer.settings.exclude)
    except ActError as error:
        return list(error.faults)
    rule = f"must select at least one of {int(allowed.sum()):,} channels"
    return [
        Fault(_ratio_setting(i, source), _ratio(run, source), rule, "Choose a larger ratio.")
        for i, source in enumerate(run.sources)
        if not ratio_faults(_ratio(run, source)) and _count(run, source, channels) == 0
    ]


def _is_countable(run: Run, channels: ChannelInventory) -> bool:
    try:
        candidates(channels, run.transfer.settings.exclude)
    except ActError:
        return False
    return not any(fault.setting.endswith(("selection", "scope", "share")) for fault in run.transfer.settings.faults())


def _ratio(run: Run, source: AbilitySource) -> float:
    return float(run.transfer.settings.ratio if source.ratio is None else source.ratio)


def _ratio_setting(number: int, source: AbilitySource) -> str:
    return "transfer.ratio" if source.ratio is None else f"profile.sources[{number}].ratio"


def _count(run: Run, source: AbilitySource, channels: ChannelInventory) -> int | None:
    settings, ratio = run.transfer.settings, _ratio(run, source)
    allowed = candidates(channels, settings.exclude)
    if settings.selection == "all":
        return int(allowed.sum())
    if settings.share == "parameters":
        return None  # the scores tell how many channels fill that many parameters
    if settings.scope == "module":
        return sum(share_of(int(allowed[span].sum()), ratio) for _, span in channels.spans())
    return share_of(int(allowed.sum()), ratio)
