"""Hooks that record channels of one model, and replace channels of another; gone afterwards, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from act_lightning.channels import ChannelInventory

Places = Mapping[str, Tensor]
"""Numbers of channels within each module, int64 ascending, by the module's name."""
Values = Callable[[str, int, Tensor], Tensor]
"""What stands in for channels: given a module, the number of its call in this forward pass and its output."""


def places_of(inventory: ChannelInventory, mask: Tensor) -> dict[str, Tensor]:
    """The channels of a mask by module, without modules that have none.

    Args:
        inventory: The channels of the model.
        mask: Bool ``[channels]``.
    """
    parts = inventory.split(mask)
    return {name: part.nonzero().squeeze(1) for name, part in parts.items() if bool(part.any())}


@contextmanager
def recording(model: nn.Module, places: Places) -> Iterator[dict[str, list[Tensor]]]:
    """Within it, the outputs of these channels are kept, ``[..., channels]``, one for every call of a module.

    Args:
        model: The model; it is not changed.
        places: The channels.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in places}

    def keep(name: str, numbers: Tensor, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        kept[name].append(output.detach()[..., numbers.to(output.device)])

    with _hooks(model, {name: partial(keep, name, numbers) for name, numbers in places.items()}):
        yield kept


@contextmanager
def replacing(model: nn.Module, places: Places, values: Values) -> Iterator[None]:
    """Within it, these channels of the model's modules give ``values`` instead of their own; weights stay as they are.

    Args:
        model: The model.
        places: The channels.
        values: What they give, broadcastable to ``[..., channels]`` of the module's output.
    """
    calls = dict.fromkeys(places, 0)

    def replace(name: str, numbers: Tensor, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        changed, call = output.clone(), calls[name]
        calls[name] += 1
        changed[..., numbers.to(output.device)] = values(name, call, output).to(output)
        return changed

    with _hooks(model, {name: partial(replace, name, numbers) for name, numbers in places.items()}):
        yield


@contextmanager
def _hooks(model: nn.Module, hooks: Mapping[str, Callable[..., Tensor | None]]) -> Iterator[None]:
    with ExitStack() as stack, torch.no_grad():
        for name, hook in hooks.items():
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield
