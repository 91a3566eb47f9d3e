"""What a person should see of the data before a run: labels in color, lengths, losses, and leakage between sets."""

from act_lightning.inspection.figures import Figures, figures_of
from act_lightning.inspection.inspect import InspectedSet, Inspection, inspect
from act_lightning.inspection.leakage import Overlap, Prompts, hash_prompts, normalized, overlaps
from act_lightning.inspection.samples import Piece, colored, pieces
from act_lightning.inspection.show import print_inspection

__all__ = [
    "Figures",
    "InspectedSet",
    "Inspection",
    "Overlap",
    "Piece",
    "Prompts",
    "colored",
    "figures_of",
    "hash_prompts",
    "inspect",
    "normalized",
    "overlaps",
    "pieces",
    "print_inspection",
]
