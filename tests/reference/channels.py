"""The table of channels once more, slowly: one module class, one channel, one element at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.smollm3.modeling_smollm3 import SmolLM3RMSNorm
from transformers.pytorch_utils import Conv1D

NORMS = (
    nn.LayerNorm,
    Gemma2RMSNorm,
    Gemma3RMSNorm,
    LlamaRMSNorm,
    MistralRMSNorm,
    Olmo2RMSNorm,
    Phi3RMSNorm,
    Qwen2RMSNorm,
    Qwen3RMSNorm,
    SmolLM3RMSNorm,
)
Index = int | tuple[slice, int]


def width(module: nn.Module) -> int:
    """Number of channels of one module, from what its class says about itself."""
    if isinstance(module, nn.Linear):
        return int(module.out_features)
    if isinstance(module, nn.Embedding):
        return int(module.embedding_dim)
    if isinstance(module, Conv1D):
        return int(module.nf)
    if isinstance(module, NORMS):
        return len(module.weight)
    return 0


def channels(model: nn.Module) -> list[tuple[str, nn.Module, int]]:
    """Every channel: module name, module, number within the module."""
    return [(name, module, i) for name, module in model.named_modules() for i in range(width(module))]


def pieces(module: Any, i: int) -> Iterator[tuple[Tensor, Index]]:
    """The parameters that move with channel ``i`` of a module, each with where in it."""
    if isinstance(module, nn.Embedding | Conv1D):
        yield module.weight, (slice(None), i)
    else:
        yield module.weight, i
    if getattr(module, "bias", None) is not None:
        yield module.bias, i


def moved(model: nn.Module, chosen: Collection[int]) -> dict[str, Tensor]:
    """Bool per element of every distinct parameter: whether it moves when the channels of these numbers move."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    marks = {name: torch.zeros(parameter.shape, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for number, (_, module, i) in enumerate(channels(model)):
        if number in chosen:
            for parameter, index in pieces(module, i):
                marks[names[id(parameter)]][index] = True
    return marks


def on_meta(config: PretrainedConfig) -> Any:
    """A model without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def qwen_7b(tied: bool) -> Any:
    """The shapes of Qwen2.5-7B (which is not tied), of which the paper gives numbers."""
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=tied,
    )
    return on_meta(config)
