"""The answer-only loss: next-token cross-entropy at answer tokens, with logits computed nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from act_lightning.activations import IGNORED, AnswerPositions


def answer_loss(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Sum of −log p(token | all before it) over the answer tokens of a batch.

    Args:
        model: A causal language model.
        batch: ``input_ids`` and ``labels``, int64 ``[rows, length]``; ``attention_mask`` where there is padding;
            ``position_ids``, if wanted, which restart at every sample of a packed row. Answer tokens are where the
            labels, which are not shifted, are not −100; nothing predicts the first token of a sample.

    Returns:
        The sum, float32 scalar, and the number of answer tokens. Without answer tokens the sum is zero and still
        depends on every parameter, so that a process without work can take part in a backward pass.
    """
    logits, wanted = answer_logits(model, batch)
    return cross_entropy(logits, wanted, reduction="sum"), len(wanted)


def answer_logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits that predict the answer tokens of a batch, and these tokens.

    Args:
        model: A causal language model.
        batch: As for :func:`answer_loss`.

    Returns:
        Logits, float32 ``[answer tokens, vocabulary]``, and ids, int64 ``[answer tokens]``.
    """
    following = batch["labels"][:, 1:]
    wanted = following != IGNORED
    if "position_ids" in batch:
        wanted &= batch["position_ids"][:, 1:] != 0
    predicting = torch.nn.functional.pad(wanted, (0, 1))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(AnswerPositions(predicting).take_from_input)
    try:
        logits = model(**inputs, use_cache=False).logits.squeeze(0)
    finally:
        hook.remove()
    return logits.float(), following[wanted]
