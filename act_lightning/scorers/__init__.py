"""Scorers: what channels are ranked by, pure functions on the tensors of one module, one scorer a file."""

from act_lightning.scorers.activation import Activation
from act_lightning.scorers.scorer import ActivationScorer, Observation, Scorer

__all__ = ["Activation", "ActivationScorer", "Observation", "Scorer"]
