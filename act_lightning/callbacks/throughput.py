"""Tokens a second, the share of a GPU's speed that training uses, and memory: Lightning's monitor for packed rows."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ThroughputMonitor
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from act_lightning.architecture import DecoderSizes, find_language_model, input_embedding, output_embedding
from act_lightning.data.batches import predicting_positions, sample_lengths
from act_lightning.training.lightning_compat import accumulation_complete, logging_step

_FORWARD, _TRAINING = 2, 6  # operations per parameter and token; a backward pass takes twice a forward one


@dataclass(frozen=True)
class FlopCount:
    """What decides how many operations a language model takes for a batch.

    Attributes:
        body: Parameters used for every token: all but the embedding and the head.
        head: Parameters used for answer tokens only.
        attention: Layers × heads × size of a head.
    """

    body: int
    head: int
    attention: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> FlopCount:
        """Count a model of dense layers without its weights."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        head = output_embedding(model).weight
        outer = {input_embedding(model).weight, head}
        body = sum(parameter.numel() for parameter in model.parameters() if parameter not in outer)
        sizes = DecoderSizes.of(config)
        return cls(body, head.numel(), sizes.layers * sizes.heads * sizes.head_size)

    def operations(self, lengths: Tensor, answers: int, per_parameter: int = _TRAINING) -> int:
        """Floating-point operations, counted as in appendix B of https://arxiv.org/abs/2204.02311.

        Recomputed activations count once. As is usual, attention counts every pair of tokens of a sample, although a
        causal mask hides half of them; but no pairs across the samples of a packed row, and logits only at answers.

        Args:
            lengths: Tokens of each sample, int64 ``[samples]``.
            answers: Answer tokens.
            per_parameter: Operations per parameter and token: 6 in training, 2 in validation.

        >>> FlopCount(body=100, head=10, attention=4).operations(torch.tensor([3, 2]), answers=2)
        3744
        """
        pairs = int((lengths * lengths).sum())
        return per_parameter * (self.body * int(lengths.sum()) + self.head * answers + 2 * self.attention * pairs)


class TokenThroughput(ThroughputMonitor):
    """Log what Lightning's ``ThroughputMonitor`` does, with tokens as items, and also answer tokens and memory.

    ``train/device/items_per_sec`` is tokens of samples, without padding; ``train/device/flops_per_sec`` and
    ``train/device/mfu`` are the operations that the model needs (:meth:`FlopCount.operations`), the latter as a share
    of what the GPU can do, if Lightning knows that. ``train/answer_tokens_per_sec`` counts the tokens that are learned,
    since the previous update; ``train/peak_memory_gb`` is the most memory that this process has held: on a GPU what
    torch has allocated there, else its resident memory. All are logged after updates.

    Args:
        window_size: Micro-batches that rates are averaged over.
    """

    def __init__(self, window_size: int = 100) -> None:
        super().__init__(
            batch_size_fn=lambda batch: len(sample_lengths(batch)),
            length_fn=lambda batch: int(sample_lengths(batch).sum()),
            window_size=window_size,
        )
        self._answers, self._updated_at = 0, 0.0
        self._flop_count: FlopCount | None = None

    @rank_zero_only
    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Tell the monitor how many operations this batch takes."""
        self._updated_at = self._updated_at or time.perf_counter()
        self._set_flops(pl_module, batch, _TRAINING)

    @rank_zero_only
    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The same in validation, which computes no gradients."""
        self._set_flops(pl_module, batch, _FORWARD)

    @rank_zero_only
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        *rest: Any,
    ) -> None:
        """Count, and log after an update."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, *rest)
        self._answers += predicting_positions(batch).tokens
        if not accumulation_complete(trainer):
            return
        now = time.perf_counter()
        rate = self._answers / max(now - self._updated_at, 1e-9)
        self._answers, self._updated_at = 0, now
        if (step := logging_step(trainer)) is not None:
            values = {"train/answer_tokens_per_sec": rate, "train/peak_memory_gb": peak_memory(pl_module.device) / 1e9}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

    def _set_flops(self, pl_module: L.LightningModule, batch: Mapping[str, Any], per_parameter: int) -> None:
        """Set ``flops_per_batch`` on the module, which is where Lightning's monitor reads it before every batch."""
        model, flops = find_language_model(pl_module), 0
        if model is not None:
            self._flop_count = self._flop_count or FlopCount.of(model.config)
            flops = self._flop_count.operations(
                sample_lengths(batch), predicting_positions(batch).tokens, per_parameter
            )
        pl_module.flops_per_batch = flops  # type: ignore[assignment]


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held: on a GPU what torch has allocated there, else resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
