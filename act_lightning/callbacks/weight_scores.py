"""Scores that need no samples: read from the weights of target and source, some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from torch import Tensor

from act_lightning.callbacks.measurement import Measurement
from act_lightning.callbacks.target import Target
from act_lightning.checkpoints import CheckpointReader, channel_sums, match_folders
from act_lightning.errors import ActError
from act_lightning.scorers import WeightScorer
from act_lightning.scores import write_scores


def measure_weights(due: Sequence[Measurement], target: Target, scorer: WeightScorer, trainer: L.Trainer) -> None:
    """Measure each source once, and write its scores for each of its abilities.

    One process reads; the others wait for it.

    Raises:
        ActError: On all processes, if a weight or a score is NaN or infinite.
    """
    failed = None
    if trainer.is_global_zero:
        try:
            for folder in dict.fromkeys(one.folder for one in due):
                scores = _scores(target, folder, scorer)
                for one in due:
                    if one.folder == folder:
                        write_scores(one.path, target.inventory(), scores, one.record)
        except ActError as error:
            failed = error.faults
    failed = trainer.strategy.broadcast(failed)
    if failed:
        raise ActError(*failed)


def _scores(target: Target, folder: Path, scorer: WeightScorer) -> Tensor:
    """float32 ``[channels]``."""
    channels, match = target.inventory(), target.folder and match_folders(target.folder, folder)
    with target.rows() as ours, CheckpointReader(folder) as theirs:
        sums = channel_sums(scorer.values, ours, theirs, channels, match or None)
    return scorer.finish(sums, channels.sizes()).float()
