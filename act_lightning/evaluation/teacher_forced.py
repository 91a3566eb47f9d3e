"""Score exact answers in one forward pass instead of a generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from act_lightning.errors import ActError, Fault
from act_lightning.evaluation.generation import nan_logits
from act_lightning.evaluation.modes import evaluating

_IGNORED = -100


def greedy_matches(model: PreTrainedModel, batch: Mapping[str, Tensor], places: Sequence[str] = ()) -> Tensor:
    """Whether greedy decoding would give each row's answer, token for token.

    Greedy decoding gives the reference if and only if every argmax along the reference does: up to the first that
    differs both have read the same tokens. So one teacher-forced pass decides, the token that ends the turn included.
    An answer spelled with other tokens than the tokenizer's own counts as different.

    Args:
        model: A causal language model.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, int64 ``[rows, positions]``, padded on the right;
            labels stand at their own token (not shifted), -100 where nothing is asked.
        places: Where each row stands, for messages; by default its number in the batch.

    Returns:
        bool ``[rows]``.

    Raises:
        ActError: A row asks nothing, or the logits are NaN.
    """
    labels = batch["labels"].to(model.device)[:, 1:]
    asked = labels != _IGNORED
    if not bool(asked.any(dim=1).all()):
        row = int(asked.any(dim=1).int().argmin())
        raise ActError(Fault("labels", f"row {row}", "must hold an answer token", "Leave rows without answers out."))
    columns = asked.any(dim=0).nonzero().squeeze(1)
    with evaluating(model):
        logits = cast(Any, model)(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            logits_to_keep=columns,
            use_cache=False,
        ).logits
    asked, labels = asked[:, columns], labels[:, columns]
    if bool((wrong := (logits.isnan().any(dim=-1) & asked).any(dim=1)).any()):
        raise nan_logits(int(wrong.int().argmax()), places)
    return cast(Tensor, ((logits.argmax(-1) == labels) | ~asked).all(dim=1))
