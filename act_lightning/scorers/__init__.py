"""Scorers: what channels are ranked by, pure functions on the tensors of one module, one scorer a file."""

from act_lightning.scorers.activation import Activation, ActivationOverModuleMean, RelativeActivation
from act_lightning.scorers.attribution import Attribution
from act_lightning.scorers.local import Local
from act_lightning.scorers.registry import SCORERS, UNSCORED, scorer_of
from act_lightning.scorers.scorer import ActivationScorer, Observation, Scorer, WeightScorer, recorded_scorer
from act_lightning.scorers.weight import Weight, WeightRMS

__all__ = [
    "SCORERS",
    "UNSCORED",
    "Activation",
    "ActivationOverModuleMean",
    "ActivationScorer",
    "Attribution",
    "Local",
    "Observation",
    "RelativeActivation",
    "Scorer",
    "Weight",
    "WeightRMS",
    "WeightScorer",
    "recorded_scorer",
    "scorer_of",
]
