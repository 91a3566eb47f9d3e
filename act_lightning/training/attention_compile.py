"""How a model computes: which implementation of attention, and whether its layers are compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import import_utils

from act_lightning.architecture import decoder_layers
from act_lightning.errors import ActError, ConfigIssue

_FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
ATTENTION = ("auto", "sdpa", "eager", "flex_attention", *_FLASH)
_COMPILED = {"dynamic": True}  # packed rows are of all lengths

Compile = bool | dict[str, Any]


def attention_issues(attention: str) -> list[ConfigIssue]:
    """What is wrong with ``model.attention``, before a model is known.

    transformers would fetch a kernel from the hub where the package of a flash attention is missing; that is code of
    someone else's, so it is refused here.
    """
    if attention not in ATTENTION:
        return [ConfigIssue("model.attention", attention, f"must be one of {', '.join(ATTENTION)}", "Choose one.")]
    if attention in _FLASH and not _is_installed(attention):
        problem = "must be installed, with a GPU that it runs on"
        return [ConfigIssue("model.attention", attention, problem, "Install its package (flash-attn), or write sdpa.")]
    return []


def _is_installed(flash: str) -> bool:
    """Whether transformers finds the package of a flash attention; the oldest of the range do not know the newest."""
    known = getattr(import_utils, f"is_flash_attn_{flash[-1]}_available", None)
    return known is not None and bool(known())


def set_attention(model: PreTrainedModel, attention: str) -> None:
    """Let a model compute attention by this implementation; ``auto`` leaves transformers' choice.

    Raises:
        ActError: If the model has no such implementation.
    """
    if attention == "auto":
        return
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        problem = f"must be an implementation that {model.config.model_type} has ({reason})"
        raise ActError(ConfigIssue("model.attention", attention, problem, "Write auto.")) from error


def compile_issues(setting: object) -> list[ConfigIssue]:
    """What is wrong with ``model.compile``: found by compiling, lazily, a module that does nothing."""
    if isinstance(setting, bool):
        return []
    problem, hint = "must be true, false, or arguments of torch.compile", "Write true, or {mode: max-autotune}."
    if not isinstance(setting, Mapping):
        return [ConfigIssue("model.compile", setting, problem, hint)]
    try:
        nn.Identity().compile(**setting)
    except Exception as error:  # whatever a backend of someone else's raises
        return [ConfigIssue("model.compile", dict(setting), f"{problem} ({error})", hint)]
    return []


def compile_layers(model: PreTrainedModel, setting: Compile) -> None:
    """Compile each decoder layer, in place: names of modules and parameters, and hooks between layers, stay.

    Layer by layer, one graph serves them all, compiling takes seconds instead of minutes, and strategies may gather
    each layer's weights (https://docs.pytorch.org/tutorials/recipes/regional_compilation.html).

    Args:
        model: A model of transformers.
        setting: ``True``, or arguments of ``torch.compile``; shapes are dynamic unless these say otherwise.

    Raises:
        ActError: If the model does not say what its layers are.
    """
    if setting is False:
        return
    arguments = _COMPILED | ({} if setting is True else setting)
    layers = decoder_layers(model).values()
    if not layers:
        problem = f"must be false for {model.config.model_type}, which names no layers to compile"
        raise ActError(ConfigIssue("model.compile", setting, problem, "Write false."))
    for layer in layers:
        layer.compile(**arguments)
