"""Loss and right tokens at the answer tokens of a batch; the rest of a model sees the batch as it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from act_lightning.architecture import output_embedding
from act_lightning.data.batches import AnswerPositions
from act_lightning.defaults import IGNORED
from act_lightning.hooks import temporary_hooks
from act_lightning.training.head_loss import LogitTransform, Scored, bounded_loss, bounded_scores, logit_transform

LOGITS_AT_ONCE = 1 << 27  # half a gigabyte in float32: 883 tokens of Qwen2.5's 152,064 entries; more gain no speed
_TAIL = "_act_tail"


def answer_loss(
    model: PreTrainedModel, batch: Mapping[str, Tensor], at_once: int | None = None, factor: Tensor | float = 1.0
) -> tuple[Tensor, int]:
    """Sum of −log p(token | all before it) over the answer tokens of a batch.

    Args:
        model: A causal language model.
        batch: ``input_ids`` and ``labels``, int64 ``[rows, length]``; ``attention_mask`` where there is padding;
            ``position_ids``, if wanted, which restart at every sample of a packed row. Answer tokens are where the
            labels, which are not shifted, are not −100; nothing predicts the first token of a sample.
        at_once: Answer tokens whose logits are in memory together; by default as many as half a gigabyte holds.
        factor: By which the backward pass will multiply the sum, as far as it is known: the gradients by logits, which
            are computed with the loss, are multiplied while they are. In float16 small ones are zero without it.

    Returns:
        The sum, float32 scalar, and the number of answer tokens. Without answer tokens the sum is zero and still
        depends on every parameter, so that a process without work can take part in a backward pass.
    """
    loss, _, tokens = _scored(model, batch, at_once, factor)
    return loss, tokens


def score_answers(model: PreTrainedModel, batch: Mapping[str, Tensor], at_once: int | None = None) -> Scored:
    """The same sum without gradients, and how many answer tokens have the highest logit.

    Args:
        model: A causal language model.
        batch: As for :func:`answer_loss`.
        at_once: As for :func:`answer_loss`.
    """
    with torch.no_grad():
        return _scored(model, batch, at_once, None)


def _scored(
    model: PreTrainedModel, batch: Mapping[str, Tensor], at_once: int | None, factor: Tensor | float | None
) -> Scored:
    """Scores by chunks, where what the model does after its head is known; else of all logits together."""
    known = hasattr(model, _TAIL)
    tail: LogitTransform | None = getattr(model, _TAIL) if known else logit_transform(model.config)
    if tail is not None:
        at_once = at_once or max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
        at_head = HeadHook(*_answers(batch), tail, at_once, factor)
        scored, logits = at_head.run(model, _inputs(batch))
        if known or tail.explains(at_head.raw, logits):
            setattr(model, _TAIL, tail)
            return scored
        setattr(model, _TAIL, None)
        rank_zero_info(f"{model.config.model_type} changes its logits in a way of its own: all are computed together")
    return _together(model, batch)


class HeadHook:
    """Scores answer tokens where a model's head begins, inside its forward pass.

    A strategy that shards has gathered the head's weights there, and only there. What the model returns as logits is
    of its first token alone, without gradients of its own; but it depends on the loss, for strategies hang hooks on it.

    Args:
        positions: Where answer tokens are predicted.
        wanted: The answer tokens, int64 ``[answer tokens]``.
        tail: What the model does after its head.
        at_once: Tokens whose logits are in memory together.
        factor: Of the gradients; None, if the number of right tokens is wanted, and no gradients.

    Attributes:
        raw: The head's output at the first token.
    """

    raw: Tensor
    scored: Scored

    def __init__(
        self,
        positions: AnswerPositions,
        wanted: Tensor,
        tail: LogitTransform,
        at_once: int,
        factor: Tensor | float | None,
    ) -> None:
        self.positions = positions
        self.wanted = wanted
        self.tail = tail
        self.at_once = at_once
        self.factor = factor

    def run(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[Scored, Tensor]:
        """Scores, and what the model calls the logits of its first token."""
        head = output_embedding(model)
        with temporary_hooks([head.register_forward_pre_hook(self.score), head.register_forward_hook(self.tie)]):
            logits = model(**inputs, use_cache=False).logits
        loss, right, tokens = self.scored
        return Scored(loss + logits[..., :0].sum(), right, tokens), logits.detach()

    def score(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Before the head: score, and leave it the first token."""
        hidden = self.positions.take(inputs[0])

        def logits(some: Tensor) -> Tensor:
            return self.tail(head.forward(some))

        if self.factor is None:
            self.scored = bounded_scores(hidden, self.wanted, logits, self.at_once)
        else:
            loss = bounded_loss(head, hidden, self.wanted, logits, self.at_once, self.factor)
            self.scored = Scored(loss, self.wanted.new_zeros(()), len(self.wanted))
        return (inputs[0].detach().flatten(0, -2)[None, :1],)

    def tie(self, head: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """After the head: depend on the loss alone."""
        self.raw, loss = output.detach(), self.scored.loss
        return self.raw + (loss - loss.detach()).to(output.dtype)


def _together(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Scored:
    """Scores of the model's own logits, at all answer tokens together."""
    logits, wanted = answer_logits(model, batch)
    right = (logits.detach().argmax(-1) == wanted).sum()
    return Scored(cross_entropy(logits, wanted, reduction="sum"), right, len(wanted))


def answer_logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits that predict the answer tokens of a batch, all of them together, and these tokens.

    Args:
        model: A causal language model.
        batch: As for :func:`answer_loss`.

    Returns:
        Logits, float32 ``[answer tokens, vocabulary]``, and ids, int64 ``[answer tokens]``.
    """
    positions, wanted = _answers(batch)
    with temporary_hooks([output_embedding(model).register_forward_pre_hook(positions.take_from_input)]):
        logits = model(**_inputs(batch), use_cache=False).logits
    return logits.squeeze(0).float(), wanted


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}


def _answers(batch: Mapping[str, Tensor]) -> tuple[AnswerPositions, Tensor]:
    """The positions that predict answer tokens, and these tokens, int64 ``[answer tokens]``."""
    following = batch["labels"][:, 1:]
    wanted = following != IGNORED
    if "position_ids" in batch:
        wanted &= batch["position_ids"][:, 1:] != 0
    return AnswerPositions(torch.nn.functional.pad(wanted, (0, 1))), following[wanted]
