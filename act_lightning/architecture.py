"""What is known of a model's shape: its decoder layers, its parts, and the language model inside a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from act_lightning.errors import ActError, ConfigIssue


@dataclass(frozen=True)
class DecoderParts:
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


def decoder_parts(model: PreTrainedModel) -> DecoderParts:
    """Cut a decoder at the layers that transformers keeps whole when it spreads a model over devices.

    Args:
        model: A causal language model; on the meta device is enough.

    Raises:
        ActError: If it has no such layers.
    """
    kinds = set(model._no_split_modules or ())
    layers = tuple(name for name, module in model.named_modules() if type(module).__name__ in kinds)
    if not layers:
        problem = "must have decoder layers that transformers names (_no_split_modules)"
        hint = "Choose profile.placement: resident for this architecture."
        raise ActError(ConfigIssue("profile.placement", type(model).__name__, problem, hint))
    outer = (name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None)
    return DecoderParts(layers, tuple(name for name in outer if not _is_inside(name, layers)))


def part_sizes(model: PreTrainedModel) -> dict[str, int]:
    """Number of parameter elements of every part; a tied matrix counts in each part that has it."""
    parts = decoder_parts(model).parts
    return {name: sum(one.numel() for one in model.get_submodule(name).parameters()) for name in parts}


def members(model: nn.Module, part: str) -> list[str]:
    """Full names of the modules of a part that have parameters of their own."""
    inside = model.get_submodule(part).named_modules(prefix=part)
    return [name for name, module in inside if next(module.parameters(recurse=False), None) is not None]


def _is_inside(name: str, layers: Sequence[str]) -> bool:
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)


_TRANSFERRED = "_act_transferred"


def find_language_model(module: nn.Module) -> PreTrainedModel | None:
    """The causal language model of transformers that ``module`` holds, or ``None`` when it holds none yet.

    Raises:
        ActError: If it holds several.
    """
    found: dict[str, PreTrainedModel] = {}
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(child, PreTrainedModel) and not inside and child.get_output_embeddings() is not None:
            found[name] = child
    if len(found) > 1:
        problem = "must hold one causal language model of transformers"
        hint = "Keep a second one (a teacher, say) outside the LightningModule's attributes, in a tuple or list."
        raise ActError(ConfigIssue("LightningModule", ", ".join(found), problem, hint))
    return next(iter(found.values()), None)


def has_weights(model: PreTrainedModel | None) -> bool:
    """Whether a model is there and its weights are in memory."""
    return model is not None and not any(parameter.is_meta for parameter in model.parameters())


def require_language_model(module: nn.Module) -> PreTrainedModel:
    """The causal language model inside ``module``.

    Raises:
        ActError: If there is none, or it has no weights.
    """
    model = find_language_model(module)
    if model is None or not has_weights(model):
        problem = "must hold one causal language model of transformers, with weights, when fitting starts"
        hint = "Make an AutoModelForCausalLM in __init__ or configure_model and keep it as an attribute."
        raise ActError(ConfigIssue("LightningModule", type(module).__name__, problem, hint))
    return model


def is_transferred(model: PreTrainedModel | None) -> bool:
    """Whether abilities were injected into this model before, or it was restored from a checkpoint."""
    return hasattr(model, _TRANSFERRED)


def transfer_record(model: PreTrainedModel) -> dict[str, Any]:
    """What was injected, as in ``transfer.json``; empty if nothing was."""
    found: dict[str, Any] = getattr(model, _TRANSFERRED, {})
    return found


def mark_transferred(model: PreTrainedModel, record: Mapping[str, Any]) -> None:
    """Remember, on the model itself, what was injected."""
    setattr(model, _TRANSFERRED, dict(record))
