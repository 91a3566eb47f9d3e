"""From scores to masks: how many channels, which ones, and how masks of several abilities join and overlap.

A mask is a bool tensor ``[channels]`` in the order of :class:`~act_lightning.channels.ChannelInventory`
(paper §4.1 and §4.2, https://arxiv.org/abs/2601.09398).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction

import torch
from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ActError, Fault, refuse


def share_of(count: int, ratio: float | Fraction) -> int:
    """The whole part of ``count · ratio``, with the ratio taken as the decimal that is written.

    >>> share_of(1750528, 0.01), share_of(100, 0.29)
    (17505, 29)
    """
    return int(count * Fraction(str(ratio)))


def ratio_faults(ratio: float | Fraction, setting: str = "transfer.ratio") -> list[Fault]:
    """What is wrong with a ratio: it must be a finite number in (0, 1]."""
    if isinstance(ratio, bool) or not 0 < ratio <= 1:
        return [Fault(setting, ratio, "must lie in (0, 1]", "Write the share to select, such as 0.01 for one percent.")]
    return []


def candidates(inventory: ChannelInventory, exclude: Iterable[str]) -> Tensor:
    """The channels that may be selected: all but those of modules that match a pattern.

    Args:
        inventory: The channels of the model.
        exclude: fnmatch patterns on full module names.

    Returns:
        Bool ``[channels]``.

    Raises:
        ActError: If a pattern matches no module, or nothing is left.
    """
    names = [module.name for module in inventory.modules]
    matched = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in exclude}
    refuse(_unmatched_fault(pattern, names) for pattern, found in matched.items() if not found)
    excluded = {name for found in matched.values() for name in found}
    allowed = torch.cat([torch.full((module.count,), module.name not in excluded) for module in inventory.modules])
    if not allowed.any():
        raise ActError(Fault("transfer.exclude", list(matched), "must leave some channels", "Remove a pattern."))
    return allowed


def _unmatched_fault(pattern: str, names: Sequence[str]) -> Fault:
    rule = f"must match at least one of the {len(names)} modules that own channels"
    remedy = f"Full names look like {names[len(names) // 2]!r} and {names[-1]!r}; * stands for any characters."
    return Fault("transfer.exclude", pattern, rule, remedy)


def rank(scores: Tensor, allowed: Tensor) -> Tensor:
    """Channel numbers from the highest score to the lowest; ties go to the lower number.

    Args:
        scores: float32 ``[channels]``, finite.
        allowed: Bool ``[channels]``; others are left out.

    Returns:
        int64 ``[allowed.sum()]``.
    """
    numbers = allowed.nonzero().squeeze(1)
    return numbers[torch.sort(scores[numbers], descending=True, stable=True).indices]


def top(scores: Tensor, ratio: float | Fraction, allowed: Tensor) -> Tensor:
    """The mask of the ⌊n·p⌋ highest scores among the ``n`` allowed channels; ties go to the lower number.

    Args:
        scores: float32 ``[channels]``, finite.
        ratio: p in (0, 1].
        allowed: Bool ``[channels]``.

    Returns:
        Bool ``[channels]``.

    >>> top(torch.tensor([1.0, 3.0, 3.0, 2.0]), 0.5, torch.ones(4, dtype=torch.bool)).tolist()
    [False, True, True, False]
    """
    numbers = allowed.nonzero().squeeze(1)
    return _mask(scores.numel(), numbers[_top_positions(scores[numbers], share_of(numbers.numel(), ratio))])


def _top_positions(values: Tensor, k: int) -> Tensor:
    """Positions of the ``k`` largest values, by selection instead of a full sort."""
    if k == 0:
        return torch.empty(0, dtype=torch.int64)
    threshold = torch.kthvalue(values, values.numel() - k + 1).values
    above = (values > threshold).nonzero().squeeze(1)
    tied = (values == threshold).nonzero().squeeze(1)
    return torch.cat([above, tied[: k - above.numel()]])


def top_per_module(scores: Tensor, ratio: float | Fraction, allowed: Tensor, inventory: ChannelInventory) -> Tensor:
    """Like :func:`top`, with the same share taken within every module; small modules may give none."""
    mask = torch.zeros_like(allowed)
    for _, span in inventory.spans():
        mask[span] = top(scores[span], ratio, allowed[span])
    return mask


def top_by_parameters(scores: Tensor, ratio: float | Fraction, allowed: Tensor, inventory: ChannelInventory) -> Tensor:
    """The longest head of the ranking whose distinct parameters are at most ⌊N·p⌋ of the N allowed ones.

    An element that a row and a column of a tied matrix both select counts once.
    """
    order = rank(scores, allowed)
    spent = torch.cumsum(inventory.sizes()[order], 0) - _tied_overlap(order, inventory)
    budget = share_of(inventory.count_elements(allowed), ratio)
    return _mask(scores.numel(), order[: int((spent <= budget).sum())])


def _tied_overlap(order: Tensor, inventory: ChannelInventory) -> Tensor:
    """Elements counted twice by each head of ``order``: selected rows × selected columns of every tied matrix."""
    overlap = torch.zeros_like(order)
    by_dim = [{owned.name for module in inventory.modules for owned in module.owned if owned.dim == d} for d in (0, 1)]
    for name in by_dim[0] & by_dim[1]:
        rows, columns = (torch.cumsum(_owners(name, dim, inventory)[order].long(), 0) for dim in (0, 1))
        overlap += rows * columns
    return overlap


def _owners(parameter: str, dim: int, inventory: ChannelInventory) -> Tensor:
    owners = torch.zeros(inventory.total, dtype=torch.bool)
    for module, span in inventory.spans():
        owners[span] = any(owned.name == parameter and owned.dim == dim for owned in module.owned)
    return owners


def _mask(total: int, chosen: Tensor) -> Tensor:
    mask = torch.zeros(total, dtype=torch.bool)
    mask[chosen] = True
    return mask


def random_scores(total: int, *key: object) -> Tensor:
    """Scores that rank channels at random, reproducibly from ``key`` (such as a seed, a source and an ability).

    Returns:
        float32 ``[total]`` in [0, 1).
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(total, generator=generator)


def union(masks: Sequence[Tensor]) -> Tensor:
    """The channels that any of ``masks`` (each bool ``[channels]``) selects."""
    return torch.stack(list(masks)).any(0)


def overlap(row: Tensor, column: Tensor) -> float:
    """Share of the channels of ``row`` that ``column`` also selects (paper Table 1: normalized by the row's mask).

    >>> overlap(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
    0.5
    """
    chosen = int(row.sum())
    return float((row & column).sum()) / chosen if chosen else 0.0
