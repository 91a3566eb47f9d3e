"""Attribution once more, slowly: whole gradients from autograd, one channel and one element at a time."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.reference.act import Sample, mean_loss
from tests.reference.channels import channels, moved, pieces


def between(target: Any, source: Any, alpha: float, swapped: Collection[int] = ()) -> Any:
    """A copy of the target with every element on the way to the source, and some channels there already."""
    model, marks = copy.deepcopy(target), moved(target, swapped)
    with torch.no_grad():
        for (name, ours), theirs in zip(model.named_parameters(), source.parameters(), strict=True):
            on_the_way = ours + alpha * (theirs - ours)
            ours.copy_(torch.where(marks[name], theirs, on_the_way))
    return model


def loss_changes(target: Any, source: Any, model: Any, samples: Sequence[Sample]) -> list[float]:
    """∂L/∂θ · Δθ over the elements of each channel, with gradients at ``model``."""
    gradients = torch.autograd.grad(mean_loss(model, samples), list(model.parameters()))
    by_id = {id(ours): gradient for ours, gradient in zip(target.parameters(), gradients, strict=True)}
    theirs = dict(source.named_modules())
    found = []
    for name, module, i in channels(target):
        pairs = zip(pieces(module, i), pieces(theirs[name], i), strict=True)
        terms = [(by_id[id(ours)][at], ours[at], other[at]) for (ours, at), (other, _) in pairs]
        found.append(sum(float((g.double() * (b.double() - a.double())).sum().detach()) for g, a, b in terms))
    return found


def size(module: Any, i: int) -> int:
    return sum(parameter[at].numel() for parameter, at in pieces(module, i))


def scores(
    target: Any,
    source: Any,
    samples: Sequence[Sample],
    alphas: Sequence[float] = (0.5,),
    keep: Sequence[Sample] = (),
    penalty: float = 0.0,
    swapped: Collection[int] = (),
) -> list[float]:
    """The predicted fall of the loss, less the penalty on the predicted rise of another, per parameter."""
    falls, rises = [], []
    for alpha in alphas:
        model = between(target, source, alpha, swapped)
        falls.append([-change for change in loss_changes(target, source, model, samples)])
        rises.append(loss_changes(target, source, model, keep) if keep else [0.0] * len(falls[0]))
    found = []
    for number, (_, module, i) in enumerate(channels(target)):
        fall = sum(values[number] for values in falls) / len(falls)
        rise = sum(values[number] for values in rises) / len(rises)
        found.append((fall - penalty * max(0.0, rise)) / size(module, i))
    return found


def swapped_alone(target: Any, source: Any, channel: int, share: float) -> Any:
    """A copy of the target in which one channel alone went a share of the way."""
    model, marks = copy.deepcopy(target), moved(target, [channel])
    with torch.no_grad():
        for (name, ours), theirs in zip(model.named_parameters(), source.parameters(), strict=True):
            ours.add_(torch.where(marks[name], share * (theirs - ours), torch.zeros_like(ours)))
    return model


def tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
