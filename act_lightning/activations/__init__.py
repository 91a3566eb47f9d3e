"""Two siblings read the same tokens; how far apart are their activations, channel by channel?

Implements paper §3.1, eq. (1) (https://arxiv.org/abs/2601.09398): the activation of a channel is its module's output,
compared at answer tokens only. What is measured (:class:`ChannelMeans`, by a scorer) knows nothing of how the two
models are run (:class:`Pair`).
"""

from act_lightning.activations.means import ChannelMeans, MeanAbsoluteDifference, mean_absolute_difference
from act_lightning.activations.observing import Again, observed, run_with
from act_lightning.activations.pair import (
    Batch,
    Pair,
    Reader,
    Reading,
    ReadyBatch,
    ResidentPair,
    compare,
    compare_on_batch,
    forward,
)
from act_lightning.activations.positions import IGNORED, AnswerPositions, unambiguous

__all__ = [
    "IGNORED",
    "Again",
    "AnswerPositions",
    "Batch",
    "ChannelMeans",
    "MeanAbsoluteDifference",
    "Pair",
    "Reader",
    "Reading",
    "ReadyBatch",
    "ResidentPair",
    "compare",
    "compare_on_batch",
    "forward",
    "mean_absolute_difference",
    "observed",
    "run_with",
    "unambiguous",
]
