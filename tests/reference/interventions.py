"""Interventions once more, without hooks: modules wrapped in place, one sample at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tests.reference.act import IGNORED, Sample


class _Wrapped(nn.Module):
    """A module whose output passes through a function."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.change = change

    def forward(self, *args: Tensor) -> Tensor:
        return self.change(self.inner(*args))


def _swap(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, _Wrapped(model.get_submodule(name), change))


def _loss(model: nn.Module, ids: Sequence[int], labels: Sequence[int]) -> float:
    logits = model(input_ids=torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)
    losses = [-float(logits[t - 1, labels[t]]) for t in range(1, len(ids)) if labels[t] != IGNORED]
    return sum(losses) / len(losses)


@torch.no_grad()
def loss_with(target: nn.Module, sample: Sample, wanted: dict[str, list[int]], source: nn.Module | None) -> float:
    """The target's loss where the channels ``wanted`` give what the source's give; without a source, its own loss."""
    patched = copy.deepcopy(target)
    if source is not None:
        seen: dict[str, Tensor] = {}
        reader = copy.deepcopy(source)
        for name in wanted:

            def keep(output: Tensor, name: str = name) -> Tensor:
                seen[name] = output.clone()
                return output

            _swap(reader, name, keep)
        reader(input_ids=torch.tensor([list(sample[0])]))
        for name, channels in wanted.items():

            def put(output: Tensor, name: str = name, channels: list[int] = channels) -> Tensor:
                changed = output.clone()
                for channel in channels:
                    changed[..., channel] = seen[name][..., channel]
                return changed

            _swap(patched, name, put)
    return _loss(patched, *sample)
