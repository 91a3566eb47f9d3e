"""ACT: find the channels of an ability by comparing two sibling models, move only those, fine-tune briefly."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from act_lightning.api import Mask, Scores, merge, merge_, score

__version__ = "0.1.0"
__all__ = ["Mask", "Scores", "merge", "merge_", "score"]


def __getattr__(name: str) -> object:
    """Import torch and what builds on it only when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("act_lightning.api"), name)
