"""How much memory a pair takes, by how it is run; from a model without weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

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


def _name(model: nn.Module, wanted: nn.Module) -> str:
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[wanted]
