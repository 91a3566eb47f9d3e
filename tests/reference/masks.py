"""Masks once more, slowly: Python's sort, decimal arithmetic, one channel at a time."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_FLOOR, Decimal

import torch
from torch import nn

from tests.reference.channels import channels, pieces


def whole_part(count: int, ratio: str) -> int:
    """⌊count · ratio⌋ by decimal arithmetic on the ratio as written."""
    return int((count * Decimal(ratio)).to_integral_value(ROUND_FLOOR))


def ranking(scores: Sequence[float], allowed: Sequence[bool]) -> list[int]:
    """Allowed channel numbers, the highest score first, of equal scores the lower number first."""
    return sorted((i for i in range(len(scores)) if allowed[i]), key=lambda i: (-scores[i], i))


def top(scores: Sequence[float], ratio: str, allowed: Sequence[bool]) -> list[bool]:
    """Whether each channel is among the best ⌊n·p⌋ of the n allowed."""
    ranked = ranking(scores, allowed)
    chosen = ranked[: whole_part(len(ranked), ratio)]
    return [i in chosen for i in range(len(scores))]


def top_per_module(scores: Sequence[float], ratio: str, allowed: Sequence[bool], owners: Sequence[str]) -> list[bool]:
    """The same within each module; ``owners`` names the module of each channel."""
    mask = [False] * len(scores)
    for name in dict.fromkeys(owners):
        members = [i for i, owner in enumerate(owners) if owner == name]
        part = top([scores[i] for i in members], ratio, [allowed[i] for i in members])
        for i, chosen in zip(members, part, strict=True):
            mask[i] = chosen
    return mask


def top_by_parameters(
    model: nn.Module, scores: Sequence[float], ratio: str, allowed: Sequence[bool]
) -> tuple[list[bool], int]:
    """The longest head of the ranking that fits in ⌊N·p⌋ parameters, and how many it takes, by marking elements."""
    ranked = ranking(scores, allowed)
    spent = _elements_after_each(model, ranked)
    budget = whole_part(spent[-1], ratio)
    fitting = [count for count in spent if count <= budget]
    chosen = ranked[: len(fitting)]
    return [i in chosen for i in range(len(scores))], fitting[-1] if fitting else 0


def _elements_after_each(model: nn.Module, numbers: Sequence[int]) -> list[int]:
    marks = {id(parameter): torch.zeros(parameter.shape, dtype=torch.bool) for parameter in model.parameters()}
    every = channels(model)
    counts = []
    for number in numbers:
        _, module, i = every[number]
        for parameter, index in pieces(module, i):
            marks[id(parameter)][index] = True
        counts.append(sum(int(mark.sum()) for mark in marks.values()))
    return counts
