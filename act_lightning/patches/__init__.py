"""Ability patches: what a transfer or a fine-tuning changed, bit for bit, as one file to apply, revert and share."""

from act_lightning.patches.applying import apply_patch, revert_patch
from act_lightning.patches.description import Group, patched_card, summary
from act_lightning.patches.fetching import find_patch
from act_lightning.patches.file import PatchFile, open_patch
from act_lightning.patches.making import make_patch
from act_lightning.patches.record import PatchRecord, TensorChange
from act_lightning.patches.stored import weights_digest

__all__ = [
    "Group",
    "PatchFile",
    "PatchRecord",
    "TensorChange",
    "apply_patch",
    "find_patch",
    "make_patch",
    "open_patch",
    "patched_card",
    "revert_patch",
    "summary",
    "weights_digest",
]
