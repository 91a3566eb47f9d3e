"""Samples joined into one row without padding, and when a row of several samples should be one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PretrainedConfig

from act_lightning.data.batching.batches import Batch
from act_lightning.data.batching.isolation import packing_obstacle
from act_lightning.data.labeling.labels import Sample
from act_lightning.errors import ActError, Fault

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


def packs(packing: Packing, config: PretrainedConfig, by_length: bool) -> bool:
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
        remedy = "Write auto, which pads the rows of such a model."
        raise ActError(Fault("data.packing", True, f"must be left to a model that can: {obstacle}", remedy))
    rank_zero_info(f"rows are padded, not packed: {obstacle}")
    return False


def _skips_hidden(config: PretrainedConfig) -> bool:
    """Whether attention between the samples of a packed row is skipped, and not computed and masked."""
    return "flash" in str(config._attn_implementation)
