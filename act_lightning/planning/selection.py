"""What p gives: how many channels the masks of a run will select, and how many parameters these may own."""

from __future__ import annotations

from act_lightning.channels import ChannelInventory
from act_lightning.masks import candidates
from act_lightning.planning.run import Run
from act_lightning.transfer import count_selected

_KEYS = ("least", "expected", "most")


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


def parameter_ranges(run: Run, channels: ChannelInventory, counts: dict[str, int | None]) -> dict[str, dict[str, int]]:
    """How many parameters that many channels own at ``least``, at ``most``, and if any are ``expected`` alike.

    Which channels they are is for the scores to say. An element that a row and a column of a tied matrix share counts
    for both here, so that ``most`` may be a little too large.

    Args:
        run: The run.
        channels: The channels of the target.
        counts: What :func:`selection_counts` found; what only the scores can tell is left out.
    """
    if not counts:
        return {}
    sizes = channels.sizes()[candidates(channels, run.transfer.settings.exclude)].sort().values
    sums = sizes.cumsum(0)
    found = {}
    for name, count in counts.items():
        if count:
            least, most = int(sums[count - 1]), int(sums[-1] - (sums[-count - 1] if count < len(sums) else 0))
            expected = round(int(sums[-1]) * count / len(sums))
            bounds = [min(number, channels.parameters) for number in (least, expected, most)]
            found[name] = dict(zip(_KEYS, bounds, strict=True))
    return found
