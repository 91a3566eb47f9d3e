"""Where a decoder can be cut: its layers, and the modules with parameters outside of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from act_lightning.errors import ActError, Fault


@dataclass(frozen=True)
class Division:
    """The parts of a decoder that are brought to a device one at a time.

    Attributes:
        layers: Names of the decoder layers, in order.
        outer: Names of the modules outside the layers that have parameters of their own: embedding, final norm, head.
    """

    layers: tuple[str, ...]
    outer: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.outer, *self.layers)


def divide(model: PreTrainedModel) -> Division:
    """Cut a decoder at the layers that transformers keeps whole when it spreads a model over devices.

    Args:
        model: A causal language model; on the meta device is enough.

    Raises:
        ActError: If it has no such layers.
    """
    kinds = set(model._no_split_modules or ())
    layers = tuple(name for name, module in model.named_modules() if type(module).__name__ in kinds)
    if not layers:
        rule = "must have decoder layers that transformers names (_no_split_modules)"
        remedy = "Choose profile.placement: resident for this architecture."
        raise ActError(Fault("profile.placement", type(model).__name__, rule, remedy))
    outer = (name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None)
    return Division(layers, tuple(name for name in outer if not _is_inside(name, layers)))


def part_sizes(model: PreTrainedModel) -> dict[str, int]:
    """Number of parameter elements of every part; a tied matrix counts in each part that has it."""
    parts = divide(model).parts
    return {name: sum(one.numel() for one in model.get_submodule(name).parameters()) for name in parts}


def members(model: nn.Module, part: str) -> list[str]:
    """Full names of the modules of a part that have parameters of their own."""
    inside = model.get_submodule(part).named_modules(prefix=part)
    return [name for name, module in inside if next(module.parameters(recurse=False), None) is not None]


def _is_inside(name: str, layers: Sequence[str]) -> bool:
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)
