"""Checkpoints of a fit, kept whole: written beside their place and renamed, read by any number of processes."""

from act_lightning.training_state.io import TrainingStateIO
from act_lightning.training_state.saving import LAST, save_whole

__all__ = ["LAST", "TrainingStateIO", "save_whole"]
