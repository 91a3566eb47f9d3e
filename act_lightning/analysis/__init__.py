"""The paper's findings as functions: scores in, a dataframe or a figure out; and the page that shows them all.

Scores are float32 ``[channels]`` by ability, in the order of a :class:`~act_lightning.channels.ChannelInventory`; masks
are bool ``[channels]``. In a notebook:

    saved = read_runs([Path("runs/qwen")])
    scores = saved.pairs[0].scores
    concentration(scores)                                        # Finding 1
    overlap_matrix(top_masks(scores, 0.01))                      # Finding 3, Table 1

Figures of these tables are in :mod:`act_lightning.analysis.figures.findings`.

Each is imported when it is asked for: the command line needs neither pandas nor matplotlib to start.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from act_lightning.analysis.distribution import (
        by_layer_and_type,
        ccdf,
        ccdfs,
        ccdfs_by,
        composition,
        concentration,
        gini,
        head_and_embedding,
        places,
        selected_by_module,
        share_held,
    )
    from act_lightning.analysis.overlaps import (
        chance_overlap,
        chance_overlap_by_module,
        consistency,
        cross_language_overlap,
        mask_stability,
        overlap_by_group,
        overlap_matrix,
        overlap_over_ratios,
        overlaps_by_samples,
        pair_groups,
        samples_for,
        shared_channels,
        top_masks,
    )
    from act_lightning.analysis.paper import Ability, parse_ability, read_abilities
    from act_lightning.analysis.saved import Pair, SavedScores, read_runs
    from act_lightning.analysis.weights import agreement, average_ranks, weight_change

__all__ = [
    "Ability",
    "Pair",
    "SavedScores",
    "agreement",
    "average_ranks",
    "by_layer_and_type",
    "ccdf",
    "ccdfs",
    "ccdfs_by",
    "chance_overlap",
    "chance_overlap_by_module",
    "composition",
    "concentration",
    "consistency",
    "cross_language_overlap",
    "gini",
    "head_and_embedding",
    "mask_stability",
    "overlap_by_group",
    "overlap_matrix",
    "overlap_over_ratios",
    "overlaps_by_samples",
    "pair_groups",
    "parse_ability",
    "places",
    "read_abilities",
    "read_runs",
    "samples_for",
    "selected_by_module",
    "share_held",
    "shared_channels",
    "top_masks",
    "weight_change",
]
_HOMES = {
    "Ability": "act_lightning.analysis.paper",
    "Pair": "act_lightning.analysis.saved",
    "SavedScores": "act_lightning.analysis.saved",
    "agreement": "act_lightning.analysis.weights",
    "average_ranks": "act_lightning.analysis.weights",
    "by_layer_and_type": "act_lightning.analysis.distribution",
    "ccdf": "act_lightning.analysis.distribution",
    "ccdfs": "act_lightning.analysis.distribution",
    "ccdfs_by": "act_lightning.analysis.distribution",
    "chance_overlap": "act_lightning.analysis.overlaps",
    "chance_overlap_by_module": "act_lightning.analysis.overlaps",
    "composition": "act_lightning.analysis.distribution",
    "concentration": "act_lightning.analysis.distribution",
    "consistency": "act_lightning.analysis.overlaps",
    "cross_language_overlap": "act_lightning.analysis.overlaps",
    "gini": "act_lightning.analysis.distribution",
    "head_and_embedding": "act_lightning.analysis.distribution",
    "mask_stability": "act_lightning.analysis.overlaps",
    "overlap_by_group": "act_lightning.analysis.overlaps",
    "overlap_matrix": "act_lightning.analysis.overlaps",
    "overlap_over_ratios": "act_lightning.analysis.overlaps",
    "overlaps_by_samples": "act_lightning.analysis.overlaps",
    "pair_groups": "act_lightning.analysis.overlaps",
    "parse_ability": "act_lightning.analysis.paper",
    "places": "act_lightning.analysis.distribution",
    "read_abilities": "act_lightning.analysis.paper",
    "read_runs": "act_lightning.analysis.saved",
    "samples_for": "act_lightning.analysis.overlaps",
    "selected_by_module": "act_lightning.analysis.distribution",
    "share_held": "act_lightning.analysis.distribution",
    "shared_channels": "act_lightning.analysis.overlaps",
    "top_masks": "act_lightning.analysis.overlaps",
    "weight_change": "act_lightning.analysis.weights",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the functions and classes
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
