"""A decoder a part at a time: where it can be cut, and how it runs while only one part has its weights at hand."""

from act_lightning.stages.division import Division, divide, part_sizes
from act_lightning.stages.needs import PairNeeds, computing_width, pair_needs, widest_stage
from act_lightning.stages.pairs import LayerwisePair, OffloadedReader
from act_lightning.stages.staged import Passage, StagedModel
from act_lightning.stages.weights import DiskWeights, MemoryWeights, PartWeights

__all__ = [
    "DiskWeights",
    "Division",
    "LayerwisePair",
    "MemoryWeights",
    "OffloadedReader",
    "PairNeeds",
    "PartWeights",
    "Passage",
    "StagedModel",
    "computing_width",
    "divide",
    "pair_needs",
    "part_sizes",
    "widest_stage",
]
