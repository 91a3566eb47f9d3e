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
_NAMES = {
    "paper": "Ability parse_ability read_abilities",
    "saved": "Pair SavedScores read_runs",
    "weights": "agreement average_ranks weight_change",
    "distribution": (
        "by_layer_and_type ccdf ccdfs ccdfs_by composition concentration gini head_and_embedding places "
        "selected_by_module share_held"
    ),
    "overlaps": (
        "chance_overlap chance_overlap_by_module consistency cross_language_overlap mask_stability "
        "overlap_by_group overlap_matrix overlap_over_ratios overlaps_by_samples pair_groups samples_for "
        "shared_channels top_masks"
    ),
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the functions and classes
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
