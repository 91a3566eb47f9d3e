"""The loss of every sample of a batch: what an intervention is judged by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from act_lightning.activations import IGNORED
from act_lightning.loss import answer_logits


@torch.no_grad()
def sample_losses(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean −log p over the answer tokens of every sample.

    Args:
        model: A causal language model.
        batch: ``input_ids``, ``labels`` and ``attention_mask``, ``[samples, length]``, a sample in each row.

    Returns:
        float64 ``[samples]`` on the CPU; NaN for a sample none of whose answer tokens is predicted.
    """
    logits, wanted = answer_logits(model, batch)
    rows = (batch["labels"][:, 1:] != IGNORED).nonzero()[:, 0]
    sums = torch.zeros(2, len(batch["labels"]), dtype=torch.float64)
    each = cross_entropy(logits, wanted, reduction="none").double()
    sums.index_add_(1, rows.cpu(), torch.stack([each, torch.ones_like(each)]).cpu())
    return sums[0] / sums[1]
