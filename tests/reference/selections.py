"""Selections past the paper once more, slowly: one sample, one position, one channel or one element at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference.act import IGNORED, Sample, by_position, outputs
from tests.reference.channels import channels


def modules_of(model: nn.Module) -> list[str]:
    """Names of the modules that own channels, in order."""
    return list(dict.fromkeys(name for name, _, _ in channels(model)))


def means(
    target: Any, samples: Iterable[Sample], value: Callable[[str, Tensor, Tensor], Tensor], other: Callable[..., Any]
) -> list[float]:
    """The mean over answer positions of a function of what a module gives in two ways, channel by channel."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for ids, labels in samples:
        ours, theirs = outputs(target, ids), other(ids)
        for name in ours:
            for position, label in enumerate(labels):
                if label != IGNORED:
                    for a, b in zip(ours[name][position], theirs[name][position], strict=True):
                        sums[name] = sums.get(name, 0) + value(name, a.double(), b.double())
                        counts[name] = counts.get(name, 0) + 1
    return [float(v) for name in modules_of(target) for v in sums[name] / counts[name]]


def relative(target: Any, source: Any, samples: Sequence[Sample]) -> list[float]:
    """Mean |Δa| over mean |a| of the target."""

    def other(ids: Sequence[int]) -> Any:
        return outputs(source, ids)

    differences = means(target, samples, lambda _, a, b: (a - b).abs(), other)
    magnitudes = means(target, samples, lambda _, a, __: a.abs(), other)
    return [difference / magnitude for difference, magnitude in zip(differences, magnitudes, strict=True)]


def over_module_mean(scores: Sequence[float], model: nn.Module) -> list[float]:
    """Each score over the mean of its module's."""
    parts: dict[str, list[float]] = {}
    for (name, _, _), score in zip(channels(model), scores, strict=True):
        parts.setdefault(name, []).append(score)
    return [score / (sum(part) / len(part)) for part in parts.values() for score in part]


def swapped(target: Any, source: Any, ids: Sequence[int]) -> dict[str, list[Tensor]]:
    """What each module gives for the target's own inputs when a copy of it has the source's weights."""
    found: dict[str, list[Tensor]] = {}
    copies = {}
    for name in modules_of(target):
        alone = copy.deepcopy(target.get_submodule(name))
        with torch.no_grad():
            for leaf, values in alone.named_parameters():
                values.copy_(source.get_parameter(f"{name}.{leaf}"))
        copies[name] = alone

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, _: Tensor) -> None:
            found[name] = by_position(module, copies[name](*args)[0])

        return hook

    handles = [target.get_submodule(name).register_forward_hook(keep(name)) for name in copies]
    with torch.no_grad():
        target(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return found


def local(target: Any, source: Any, samples: Sequence[Sample]) -> list[float]:
    """Mean |what the module gives with the source's weights − what it gives|, on the target's own inputs."""
    return means(target, samples, lambda _, a, b: (a - b).abs(), lambda ids: swapped(target, source, ids))


def rms(norms: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """ℓ2 norms over the root of the number of elements."""
    return [norm / math.sqrt(size) for norm, size in zip(norms, sizes, strict=True)]
