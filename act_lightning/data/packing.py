"""Several samples in one row without padding: how, when, and for which models that is sound."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from act_lightning.data.batches import Batch
from act_lightning.data.labels import Sample
from act_lightning.errors import ActError, ConfigIssue

_VOCABULARY = 64
_LAYERS = 8  # of a config that does not say which kinds of layers there are
_HEADS = 2
_WIDTH = 64
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner")
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_MOST_PARAMETERS = 2**26
_LENGTHS = (11, 7, 1, 5)
_TOLERANCE = 1.0e-3  # of the largest logit; rounding makes 1e-6 of it, another sample's tokens make 1e-1


def packing_obstacle(config: PretrainedConfig) -> str | None:
    """Why a model must not be given packed rows, or ``None`` if it keeps their samples apart.

    Most models of transformers mask attention between samples when positions restart. Some have no positions to restart
    (ALiBi in MPT and Bloom), number tokens themselves (OPT), or carry a state from token to token (Mamba). Only trying
    tells: a few layers of the architecture with random weights read samples packed and alone, on the CPU and in
    float32. Global random numbers stay as they are.

    Args:
        config: The config of a causal language model.
    """
    name = config.model_type
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            difference = _difference(_small_model(config))
    except Exception as error:  # whatever a model's code raises at sizes it was not made for
        return f"{name} could not be tried in small ({type(error).__name__}: {str(error).splitlines()[:1]})"
    if difference > _TOLERANCE:
        return f"{name} does not keep the samples of a packed row apart"
    return None


def _small_model(config: PretrainedConfig) -> PreTrainedModel:
    small = _small_config(config)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(small, trust_remote_code=False)
    if sum(parameter.numel() for parameter in shapes.parameters()) > _MOST_PARAMETERS:
        raise ValueError("still too large")
    model: PreTrainedModel = AutoModelForCausalLM.from_config(small, dtype=torch.float32, trust_remote_code=False)
    _randomize(model.eval())
    return model


def _small_config(config: PretrainedConfig) -> PretrainedConfig:
    """The same architecture with two heads of the same size, and one layer of each kind."""
    small = copy.deepcopy(config)
    small._attn_implementation = None if "flash" in str(config._attn_implementation) else config._attn_implementation
    for name, value in _small_sizes(config).items():
        if getattr(config, name, None) is not None:
            setattr(small, name, value)
    return small


def _small_sizes(config: PretrainedConfig) -> Mapping[str, Any]:
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or []))
    sizes = {
        "vocab_size": _VOCABULARY,
        "layer_types": kinds,
        "num_hidden_layers": len(kinds) or min(_LAYERS, config.num_hidden_layers),
        "hidden_size": _HEADS * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        "num_attention_heads": _HEADS,
        "num_key_value_heads": max(1, _HEADS * groups // heads),
    }
    return sizes | dict.fromkeys(_WIDTHS, _WIDTH) | dict.fromkeys(_TOKEN_IDS, 0)


def _randomize(model: PreTrainedModel) -> None:
    """Weights that keep activations near 1, so that attention looks at every token."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else parameter + 0.1 * noise)


def _difference(model: PreTrainedModel) -> float:
    """The largest difference between logits of samples packed and alone, as a share of the largest logit."""
    generator = torch.Generator().manual_seed(1)
    samples = [torch.randint(1, _VOCABULARY, (1, length), generator=generator) for length in _LENGTHS]
    positions = torch.cat([torch.arange(length) for length in _LENGTHS])[None]
    with torch.no_grad():
        alone = torch.cat([_logits(model, sample) for sample in samples], 1)
        packed = _logits(model, torch.cat(samples, 1), position_ids=positions)
    return float((packed - alone).abs().max() / alone.abs().max())


def _logits(model: PreTrainedModel, ids: Tensor, **inputs: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False, **inputs).logits
    return logits


Packing = bool | Literal["auto"]


def pack(samples: Sequence[Sample]) -> Batch:
    """One row that holds samples one after the other; positions restart where the next one begins.

    There is no attention mask: given none, transformers keeps the attention of a row whose positions restart inside
    each run of positions, by a block-diagonal mask or flash attention's lengths of sequences
    (https://huggingface.co/docs/transformers/attention_interface).

    Args:
        samples: One sample or more.

    Returns:
        ``input_ids``, ``position_ids`` and ``labels``, int64 ``[1, tokens]``.

    >>> pack([Sample(torch.tensor([5, 6, 7]), torch.tensor([-100, 6, 7]))] * 2)["position_ids"]
    tensor([[0, 1, 2, 0, 1, 2]])
    """
    return {
        "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
        "position_ids": torch.cat([torch.arange(len(sample.input_ids)) for sample in samples])[None],
        "labels": torch.cat([sample.labels for sample in samples])[None],
    }


def should_pack(packing: Packing, config: PretrainedConfig, by_length: bool) -> bool:
    """Whether rows of several samples are packed, and not padded.

    Args:
        packing: ``True`` or ``False``, which decide; ``auto`` packs where it saves work.
        config: The config of the model that reads them.
        by_length: Whether samples of like length stand together anyway. Padding them is then less work than the
            attention of a packed row, which without flash attention is computed between samples, too, and hidden.

    Raises:
        ActError: If packing is demanded of a model that does not keep samples apart.
    """
    if packing is False or (packing == "auto" and by_length and not _skips_hidden(config)):
        return False
    obstacle = packing_obstacle(config)
    if obstacle is None:
        return True
    if packing is True:
        hint = "Write auto, which pads the rows of such a model."
        raise ActError(ConfigIssue("data.packing", True, f"must be left to a model that can: {obstacle}", hint))
    rank_zero_info(f"rows are padded, not packed: {obstacle}")
    return False


def _skips_hidden(config: PretrainedConfig) -> bool:
    """Whether attention between the samples of a packed row is skipped, and not computed and masked."""
    return "flash" in str(config._attn_implementation)
