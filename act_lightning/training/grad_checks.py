"""Updates that would ruin a model, and settings that a fit which goes on cannot change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from act_lightning.errors import ConfigIssue

_WITHOUT_EFFECT = ("learning_rate", "optimizer", "lr_scheduler")


def are_finite(gradients: Sequence[Tensor]) -> bool:
    """Whether no element is NaN or infinite, of shards in those of this process."""
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    parts = [part for part in local if part.numel()]
    if not parts:
        return True
    largest = torch._foreach_norm(parts, math.inf)
    return bool(torch.stack([norm.float() for norm in largest]).isfinite().all())


def update_issues(trainer: L.Trainer, loss: float, gradients_fit: bool, micro_batch: int | None) -> list[ConfigIssue]:
    """What keeps an update from being made.

    Args:
        trainer: Whose next update it is.
        loss: Sum of the loss over the update's answer tokens, on all processes.
        gradients_fit: Whether all gradients are finite, on all processes.
        micro_batch: The micro-batch of the epoch whose loss was not finite, if this process had it.
    """
    if math.isfinite(loss) and gradients_fit:
        return []
    value = f"loss {loss}" if not math.isfinite(loss) else "gradients that are NaN or infinite"
    place = "" if micro_batch is None else _place(trainer, micro_batch)
    hint = "Lower model.learning_rate, or look at the data; then go on with ckpt_path: last. Nothing was updated."
    return [ConfigIssue(f"update {trainer.global_step + 1}{place}", value, "must be finite", hint)]


def _place(trainer: L.Trainer, micro_batch: int) -> str:
    """Number of a micro-batch, with its samples, as far as a data module of ours gave them."""
    data: Any = getattr(trainer, "datamodule", None)
    samples = data.shown_samples(micro_batch) if hasattr(data, "shown_samples") else ""
    return f", in micro-batch {micro_batch} of the epoch" + (f" ({samples})" if samples else "")


def settings_issues(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[ConfigIssue]:
    """Settings that differ from those of a checkpoint's fit, and would have no effect.

    Args:
        before: The settings that the checkpoint tells.
        now: Those of the fit that goes on; of the others that differ a warning is given.
    """
    for name, value in now.items():
        if name not in _WITHOUT_EFFECT and name in before and before[name] != value:
            rank_zero_warn(
                f"this fit goes on with other {name} than before: {_shown(before[name])}, now {_shown(value)}"
            )
    return [
        ConfigIssue(
            f"model.{name}",
            now[name],
            f"must be {before[name]!r} as before the checkpoint, whose optimizer goes on",
            "Write that; or start a fit of its own, with model.target: the exported model.",
        )
        for name in _WITHOUT_EFFECT
        if name in before and before[name] != now[name]
    ]


def data_settings(trainer: L.Trainer) -> dict[str, Any]:
    """What a fit is trained on, as far as a data module of ours knows."""
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "tokenized"):
        return {}
    samples = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    return {"samples an update": samples, "data": {name: data.tokenized[name].fingerprint for name in data.train}}


def _shown(value: Any) -> str:  # noqa: ANN401 - any setting
    if isinstance(value, dict):
        return ", ".join(f"{name} {str(one)[:8]}" for name, one in value.items())
    return str(value)
