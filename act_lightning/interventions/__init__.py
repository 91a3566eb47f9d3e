"""Do the selected channels carry the ability? One model's activations are put into another, and the loss is asked."""

from act_lightning.interventions.controls import like_by_module, random_channels
from act_lightning.interventions.effects import ALIKE, RANDOM, SELECTED, Effect, effects
from act_lightning.interventions.hooks import Places, places_of, recording, replacing
from act_lightning.interventions.losses import sample_losses
from act_lightning.interventions.trial import TARGET, Trial, Variant, position_sums

__all__ = [
    "ALIKE",
    "RANDOM",
    "SELECTED",
    "TARGET",
    "Effect",
    "Places",
    "Trial",
    "Variant",
    "effects",
    "like_by_module",
    "places_of",
    "position_sums",
    "random_channels",
    "recording",
    "replacing",
    "sample_losses",
]
