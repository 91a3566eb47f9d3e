"""The table of channels once more, slowly: one module class, one channel, one element at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

ROUTERS = ("MixtralTopKRouter", "Qwen3MoeTopKRouter", "GptOssTopKRouter", "DeepseekV3TopkRouter", "Qwen3NextTopKRouter")
ROUTERS = (*ROUTERS, "LagunaTopKRouter")
OUTPUTS_FIRST = ("MixtralExperts", "Qwen3MoeExperts", "DeepseekV3Experts", "Qwen3NextExperts", "LagunaExperts")
INPUTS_FIRST = ("GptOssExperts", "Llama4TextExperts")
NORMS = (
    "LayerNorm CohereLayerNorm Gemma2RMSNorm Gemma3RMSNorm LlamaRMSNorm MistralRMSNorm Olmo2RMSNorm Phi3RMSNorm "
    "Qwen2RMSNorm Qwen3RMSNorm SmolLM3RMSNorm MixtralRMSNorm Qwen3MoeRMSNorm GptOssRMSNorm DeepseekV3RMSNorm "
    "Qwen3NextRMSNorm Qwen3NextRMSNormGated LagunaRMSNorm Llama4TextRMSNorm MambaRMSNorm"
).split()
Index = int | tuple[slice | int, ...]


@dataclass(frozen=True)
class Packed:
    """One tensor of packed experts: ``[experts, out, in]``, or ``[experts, in, out]``."""

    module: Any
    leaf: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, outputs, inputs."""
        experts, first, second = getattr(self.module, self.leaf).shape
        return (experts, second, first) if type(self.module).__name__ in INPUTS_FIRST else (experts, first, second)


def width(module: nn.Module) -> int:
    """Number of channels of one module, from what its class says about itself."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        return int(module.out_features)
    if isinstance(module, nn.Embedding):
        return int(module.embedding_dim)
    if isinstance(module, Conv1D):
        return int(module.nf)
    if isinstance(module, nn.Conv1d):
        return int(module.out_channels)
    weight: Any = module._parameters.get("weight")
    if kind in NORMS:
        return int(weight.numel())
    return len(weight) if kind in ROUTERS else 0


def channels(model: nn.Module) -> list[tuple[str, Any, int]]:
    """Every channel: module name, module (of packed experts one tensor of them), number within the module."""
    result: list[tuple[str, Any, int]] = []
    for name, module in model.named_modules():
        if type(module).__name__ in (*OUTPUTS_FIRST, *INPUTS_FIRST):
            for leaf in ("gate_up_proj", "down_proj"):
                packed = Packed(module, leaf)
                experts, outputs, _ = packed.shape
                result += [(f"{name}.{leaf}", packed, e * outputs + j) for e in range(experts) for j in range(outputs)]
        else:
            result += [(name, module, i) for i in range(width(module))]
    return result


def pieces(module: Any, i: int) -> Iterator[tuple[Tensor, Index]]:
    """The parameters that move with channel ``i`` of a module, each with where in it."""
    if isinstance(module, Packed):
        _, outputs, _ = module.shape
        expert, j = i // outputs, i % outputs
        inputs_first = type(module.module).__name__ in INPUTS_FIRST
        yield getattr(module.module, module.leaf), (expert, slice(None), j) if inputs_first else (expert, j)
        if getattr(module.module, f"{module.leaf}_bias", None) is not None:
            yield getattr(module.module, f"{module.leaf}_bias"), (expert, j)
        return
    if isinstance(module, nn.Embedding | Conv1D):
        yield module.weight, (slice(None), i)
    elif module.weight.ndim == 2 and type(module).__name__ in NORMS:
        yield module.weight, (i // module.weight.shape[1], i % module.weight.shape[1])
    else:
        yield module.weight, i
    for bias in ("bias", "e_score_correction_bias"):
        if isinstance(getattr(module, bias, None), nn.Parameter):
            yield getattr(module, bias), i


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
