"""The density of methods that thin out task vectors: which shares make sense, and how many elements they are."""

from __future__ import annotations

from act_lightning.errors import Fault
from act_lightning.masks import share_of


def share_faults(value: float, setting: str) -> list[Fault]:
    """What is wrong with a share of elements: it must be a number in [0, 1].

    >>> [str(fault) for fault in share_faults(2, "TIES.density")]
    ['TIES.density = 2: must lie in [0, 1]. Write the share to keep, such as 0.2.']
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return [Fault(setting, value, "must lie in [0, 1]", "Write the share to keep, such as 0.2.")]
    return []


def kept_count(selected: int, density: float) -> int:
    """How many of the selected elements of a tensor are kept: ⌊n·density⌋, but one at least unless density is 0.

    >>> kept_count(1000, 0.2), kept_count(3, 0.2), kept_count(3, 0)
    (200, 1, 0)
    """
    return max(1, share_of(selected, density)) if density and selected else 0
