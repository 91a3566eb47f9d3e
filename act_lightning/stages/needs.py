"""How much memory a pair takes, by how it is run; from a model without weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from act_lightning.channels import ChannelInventory
from act_lightning.stages.division import divide, part_sizes


@dataclass(frozen=True)
class PairNeeds:
    """Bytes of weights that a pair of models of one shape holds.

    Attributes:
        whole: All weights of all models.
        stage: Those of the largest stage: what is on the device when parts are brought there.
        next_stage: Those of the largest layer, which is read while the stage before it computes.
    """

    whole: int
    stage: int
    next_stage: int


def pair_needs(model: PreTrainedModel, itemsize: int, models: int) -> PairNeeds:
    """What ``models`` models like this one need.

    The stages are the embedding, every layer, and everything else together: what comes after the layers, and the little
    that may come before.

    Args:
        model: On the meta device is enough.
        itemsize: Bytes of a parameter.
        models: The target and its sources.
    """
    each = itemsize * models
    division, sizes = divide(model), part_sizes(model)
    embedding = _name(model, model.get_input_embeddings())
    layer = max(sizes[name] for name in division.layers)
    rest = sum(sizes[name] for name in division.outer if name != embedding)
    whole = sum(parameter.numel() for parameter in model.parameters())
    return PairNeeds(whole * each, max(layer, sizes.get(embedding, 0), rest) * each, layer * each)


def widest_stage(model: PreTrainedModel, channels: ChannelInventory) -> int:
    """The most channels that a layer has, or what is outside of layers."""
    division = divide(model)
    parts: Counter[str] = Counter()
    for module in channels.modules:
        parts[next((name for name in division.layers if module.name.startswith(f"{name}.")), "")] += module.count
    return max(parts.values())


def computing_width(config: PretrainedConfig) -> int:
    """Features of a token that a model computes with at once: its logits, or what is between two hidden states.

    >>> from transformers import LlamaConfig
    >>> computing_width(LlamaConfig(hidden_size=64, intermediate_size=176, vocab_size=32000))
    32000
    """
    text = config.get_text_config()
    hidden, inner = int(text.hidden_size), getattr(text, "intermediate_size", None)
    return max(int(text.vocab_size), 5 * int(inner or 4 * hidden) + 8 * hidden)


def _name(model: nn.Module, wanted: nn.Module) -> str:
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[wanted]
