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
    """Channels of the ranking that fit in ⌊N·p⌋ parameters, one after another, and how many they take, by marking."""
    marks = {id(parameter): torch.zeros(parameter.shape, dtype=torch.bool) for parameter in model.parameters()}
    every, ranked = channels(model), ranking(scores, allowed)

    def mark(number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Mark the elements of a channel; each tensor, and where it was not marked before."""
        _, module, i = every[number]
        new = []
        for parameter, index in pieces(module, i):
            marked, before = marks[id(parameter)], marks[id(parameter)].clone()
            marked[index] = True
            new.append((marked, marked & ~before))
        return new

    total = sum(int(added.sum()) for number in ranked for _, added in mark(number))
    for marked in marks.values():
        marked.zero_()
    budget, spent, chosen = whole_part(total, ratio), 0, set()
    for number in ranked:
        new = mark(number)
        cost = sum(int(added.sum()) for _, added in new)
        if spent + cost <= budget:
            spent += cost
            chosen.add(number)
        else:
            for marked, added in new:
                marked[added] = False
    return [i in chosen for i in range(len(scores))], spent
