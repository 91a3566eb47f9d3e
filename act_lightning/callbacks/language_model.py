"""The one causal language model inside a LightningModule, and whether it is there yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from act_lightning.errors import ActError, Fault

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
        rule = "must hold one causal language model of transformers"
        remedy = "Keep a second one (a teacher, say) outside the LightningModule's attributes, in a tuple or list."
        raise ActError(Fault("LightningModule", ", ".join(found), rule, remedy))
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
        rule = "must hold one causal language model of transformers, with weights, when fitting starts"
        remedy = "Make an AutoModelForCausalLM in __init__ or configure_model and keep it as an attribute."
        raise ActError(Fault("LightningModule", type(module).__name__, rule, remedy))
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
