"""How many channels the masks of a run will select."""

from __future__ import annotations

from act_lightning.channels import ChannelInventory
from act_lightning.planning.run import Run
from act_lightning.transfer import count_selected


def selection_counts(run: Run, channels: ChannelInventory) -> dict[str, int | None]:
    """How many channels each ability's mask selects; ``None`` where only the scores can tell.

    Keyed by ability; by source and ability where several sources have one of that name. Empty where the settings are
    refused.
    """
    settings = run.transfer.settings
    if settings.faults() or run.profiler.faults() or run.transfer.selection_faults(channels, run.sources):
        return {}
    names = [ability for source in run.sources for ability in source.abilities]
    return {
        ability if names.count(ability) == 1 else f"{source.label}/{ability}": count_selected(
            channels, settings, settings.ratio if source.ratio is None else source.ratio
        )
        for source in run.sources
        for ability in source.abilities
    }
