"""How a model is run: the precision of its weights, its implementation of attention, and compiled layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from act_lightning.architecture import decoder_layers
from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
ATTENTION = ("auto", "sdpa", "eager", "flex_attention", *_FLASH)


def training_dtype(precision: str) -> torch.dtype:
    """The dtype of training weights under ``trainer.precision``: float32, unless it is one of the "true" ones.

    >>> training_dtype("bf16-mixed"), training_dtype("bf16-true")
    (torch.float32, torch.bfloat16)
    """
    dtypes = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    return dtypes.get(precision, torch.float32)


def attention_compile_issues(attention: str, compile: object) -> list[ConfigIssue]:
    """What is wrong with ``model.attention`` and ``model.compile``, before a model is known.

    A flash attention without its package is refused here, because transformers would fetch third-party code from the
    hub instead. Arguments of ``torch.compile`` are tried on a module that does nothing, which compiles lazily.
    """
    issues = []
    if attention not in ATTENTION:
        problem = f"must be one of {', '.join(ATTENTION)}"
        issues.append(ConfigIssue("model.attention", attention, problem, "Choose one."))
    elif attention in _FLASH:
        from transformers.utils import import_utils

        # the oldest supported transformers have no such function for the newest flash attention
        is_available = getattr(import_utils, f"is_flash_attn_{attention[-1]}_available", None)
        if is_available is None or not is_available():
            problem = "must be installed, with a GPU that it runs on"
            hint = "Install its package (flash-attn), or write sdpa."
            issues.append(ConfigIssue("model.attention", attention, problem, hint))
    if isinstance(compile, bool):
        return issues
    problem, hint = "must be true, false, or arguments of torch.compile", "Write true, or {mode: max-autotune}."
    if not isinstance(compile, Mapping):
        return [*issues, ConfigIssue("model.compile", compile, problem, hint)]
    try:
        nn.Identity().compile(**compile)
    except Exception as error:  # whatever a third party's backend may raise
        issues.append(ConfigIssue("model.compile", dict(compile), f"{problem} ({error})", hint))
    return issues


def set_attention(model: PreTrainedModel, attention: str) -> None:
    """Choose a model's implementation of attention; ``auto`` leaves transformers' choice.

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


def compile_layers(model: PreTrainedModel, setting: bool | dict[str, Any]) -> None:
    """Compile each decoder layer in place; names of modules and parameters, and hooks between layers, stay.

    All layers then share one graph, compiling takes seconds instead of minutes, and strategies can gather the weights
    of each layer (https://docs.pytorch.org/tutorials/recipes/regional_compilation.html).

    Args:
        model: The model.
        setting: Whether to compile, or arguments of ``torch.compile``; shapes are dynamic unless these say otherwise.

    Raises:
        ActError: If the model does not say what its layers are.
    """
    if setting is False:
        return
    layers = decoder_layers(model)
    if not layers:
        problem = f"must be false for {model.config.model_type}, which names no layers to compile"
        raise ActError(ConfigIssue("model.compile", setting, problem, "Write false."))
    arguments = {} if setting is True else setting
    for layer in layers.values():
        layer.compile(**{"dynamic": True, **arguments})  # packed rows differ in length
