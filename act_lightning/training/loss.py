"""Loss and correct tokens at the answer tokens of a batch, with the logits of a few of them in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig, PreTrainedModel

from act_lightning.architecture import output_embedding
from act_lightning.data.batches import AnswerPositions, known_masks, predicting_positions
from act_lightning.defaults import LOGITS_AT_ONCE
from act_lightning.errors import ActError, ConfigIssue

_TOLERANCE = 1.0e-3  # relative and absolute, of logits that may be bfloat16
_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse Glimmer
_DIVISOR = "logits_scaling"  # Granite, MiniCPM3


class TokenScores(NamedTuple):
    """Sums over answer tokens.

    Attributes:
        loss: Sum of −log p, float32 scalar.
        correct: Number of tokens with the highest logit, int64 scalar; zero if gradients were computed.
        tokens: Number of answer tokens.
    """

    loss: Tensor
    correct: Tensor
    tokens: int


def answer_loss(
    model: PreTrainedModel,
    batch: Mapping[str, Any],
    at_once: int | None = None,
    factor: Tensor | float = 1.0,
    router_aux_loss_coef: float = 0.0,
) -> tuple[Tensor, int]:
    """Sum of −log p(token | all before it) over the answer tokens of a batch.

    Args:
        model: A causal language model.
        batch: ``input_ids`` and ``labels``, int64 ``[rows, length]``; ``attention_mask`` if there is padding;
            ``position_ids``, optional, which restart at every sample of a packed row. Labels are not shifted, and −100
            everywhere but at answer tokens; nothing predicts the first token of a sample. With the ``layout`` of
            :func:`~act_lightning.data.batches.batch_to_device`, the host does not wait for the device.
        at_once: Answer tokens whose logits are in memory together; by default as many as fit in half a gigabyte.
        factor: What the backward pass will multiply the sum by, as far as known. Gradients of logits are computed with
            the loss and multiplied right away: in float16 small ones would otherwise be zero.
        router_aux_loss_coef: What the loss that balances experts, of all tokens of the batch, counts beside the mean
            over its answer tokens: that many times it is added to the sum for each of these.

    Returns:
        The sum, float32 scalar, and the number of answer tokens. Without answer tokens the sum is zero and still
        depends on every parameter, so that a process without work can take part in a backward pass.
    """
    loss, _, tokens = _score(model, batch, at_once, factor, router_aux_loss_coef)
    return loss, tokens


@torch.no_grad()
def score_answers(model: PreTrainedModel, batch: Mapping[str, Any], at_once: int | None = None) -> TokenScores:
    """The same sum without gradients, and the number of correct tokens; arguments as for :func:`answer_loss`."""
    return _score(model, batch, at_once, factor=1.0)


def answer_logits(model: PreTrainedModel, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The logits that predict the answer tokens of a batch (see :func:`answer_loss`), all in memory, and these tokens.

    Returns:
        Logits, float32 ``[answer tokens, vocabulary]``, and ids, int64 ``[answer tokens]``.
    """
    inputs, positions, targets = _split(batch)
    with output_embedding(model).register_forward_pre_hook(positions.take_from_input), _masks(batch):
        logits = model(**inputs, use_cache=False).logits
    return logits.squeeze(0).float(), targets


def _split(batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], AnswerPositions, Tensor]:
    """The model's inputs, the positions that predict answer tokens, and these tokens, int64 ``[answer tokens]``."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    positions = predicting_positions(batch)
    return inputs, positions, batch["labels"].flatten()[positions.index + 1]


def _masks(batch: Mapping[str, Any]) -> AbstractContextManager[None]:
    return known_masks(batch) if "layout" in batch else nullcontext()


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its head's output: ``cap · tanh(factor · raw / divisor / cap)``; most models do nothing.

    Attributes:
        factor: Multiplies the head's output.
        divisor: Divides it.
        cap: Bound on the size of logits (Gemma 2, https://arxiv.org/abs/2408.00118, §2).
    """

    factor: float = 1.0
    divisor: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """The logits, of the shape and dtype of ``raw``."""
        if self.factor != 1.0:
            raw = raw * self.factor
        if self.divisor != 1.0:
            raw = raw / self.divisor
        return raw if self.cap is None else torch.tanh(raw / self.cap) * self.cap


def logit_transform(config: PretrainedConfig) -> LogitTransform:
    """The transform that a config describes, under the names that transformers has for it.

    >>> from transformers import Gemma2Config, LlamaConfig
    >>> logit_transform(Gemma2Config()).cap, logit_transform(LlamaConfig()).cap
    (30.0, None)
    """
    text = config.get_text_config()
    factors = [value for name in _FACTORS if (value := getattr(text, name, None)) is not None]
    divisor = getattr(text, _DIVISOR, None)
    cap = getattr(text, "final_logit_softcapping", None)
    return LogitTransform(factors[0] if factors else 1.0, 1.0 if divisor is None else divisor, cap)


_TRANSFORMS: WeakKeyDictionary[PreTrainedModel, LogitTransform | None] = WeakKeyDictionary()
"""The transform of each model, once its forward pass has confirmed it; ``None`` if the config does not describe it."""


def _score(
    model: PreTrainedModel,
    batch: Mapping[str, Any],
    at_once: int | None,
    factor: Tensor | float,
    router_aux_loss_coef: float = 0.0,
) -> TokenScores:
    """Scores in chunks if the model's transform of logits is known, else from all logits together."""
    confirmed = model in _TRANSFORMS
    transform = _TRANSFORMS[model] if confirmed else logit_transform(model.config)
    if transform is not None:
        inputs, positions, targets = _split(batch)
        at_once = at_once or max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
        hook = HeadHook(positions, targets, transform, at_once, factor, router_aux_loss_coef)
        with _masks(batch):
            scores, logits = hook.run(model, inputs)
        expected = transform(hook.raw).float()
        if confirmed or torch.allclose(
            logits.float().view_as(expected), expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
        ):
            _TRANSFORMS[model] = transform
            return scores
        _TRANSFORMS[model] = None
        rank_zero_info(f"{model.config.model_type} transforms its logits in an unknown way: all are computed at once")
    if router_aux_loss_coef:
        problem = f"must be 0 for {model.config.model_type}, which transforms its logits in an unknown way"
        raise ActError(ConfigIssue("model.router_aux_loss_coef", router_aux_loss_coef, problem, "Leave it out."))
    logits, targets = answer_logits(model, batch)
    correct = (logits.detach().argmax(-1) == targets).sum()
    return TokenScores(cross_entropy(logits, targets, reduction="sum"), correct, len(targets))


@dataclass
class HeadHook:
    """Scores answer tokens at the input of a model's head, inside its forward pass.

    A strategy that shards has gathered the head's weights there, and only there. The model then returns the logits of
    its first token only, without gradients of their own; but they depend on the loss, because strategies register
    hooks on a model's output.

    Attributes:
        positions: Where answer tokens are predicted.
        targets: The answer tokens, int64 ``[answer tokens]``.
        transform: What the model does after its head.
        at_once: Tokens whose logits are in memory together.
        factor: See :func:`answer_loss`.
        router_aux_loss_coef: See :func:`answer_loss`.
        raw: The head's output at the first token.
    """

    positions: AnswerPositions
    targets: Tensor
    transform: LogitTransform
    at_once: int
    factor: Tensor | float
    router_aux_loss_coef: float = 0.0
    raw: Tensor = field(init=False)
    scores: TokenScores = field(init=False)

    def run(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[TokenScores, Tensor]:
        """Scores, and the logits that the model returns for its first token."""
        head = output_embedding(model)
        with head.register_forward_pre_hook(self._score), head.register_forward_hook(self._tie):
            routers = {"output_router_logits": True} if self.router_aux_loss_coef else {}
            outputs = model(**inputs, use_cache=False, **routers)
        loss, correct, tokens = self.scores
        if routers:
            loss = loss + self.router_aux_loss_coef * tokens * outputs.aux_loss.to(loss.device)
        return TokenScores(loss + outputs.logits[..., :0].sum(), correct, tokens), outputs.logits.detach()

    def _score(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Before the head: score all answer tokens, and leave the first token to the head."""
        hidden = self.positions.take(inputs[0])

        def logits(rows: Tensor) -> Tensor:
            return self.transform(head.forward(rows))

        if not torch.is_grad_enabled():
            self.scores = _chunked_scores(hidden, self.targets, logits, self.at_once)
        else:
            if len(hidden):
                # FSDP1 keeps views of a flat parameter among a module's parameters or attributes, by use_orig_params.
                views = [value for value in vars(head).values() if torch.is_tensor(value) and value.requires_grad]
                weights = {id(weight): weight for weight in (*head.parameters(), *views)}.values()
                loss = ChunkedLoss.apply(hidden, self.targets, logits, self.at_once, self.factor, *weights)  # type: ignore[no-untyped-call]
            else:
                loss = logits(hidden).float().sum()  # zero, but depends on all weights
            self.scores = TokenScores(loss, self.targets.new_zeros(()), len(self.targets))
        return (inputs[0].detach().flatten(0, -2)[None, :1],)

    def _tie(self, head: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """After the head: make its output depend on the loss alone."""
        self.raw, loss = output.detach(), self.scores.loss
        return self.raw + (loss - loss.detach()).to(output.dtype)


def _chunked_scores(hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], at_once: int) -> TokenScores:
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    for rows, row_targets in zip(hidden.split(at_once), targets.split(at_once), strict=True):
        values = logits(rows)
        loss += cross_entropy(values.float(), row_targets, reduction="sum")
        correct += (values.argmax(-1) == row_targets).sum()
    return TokenScores(loss, correct, len(targets))


class ChunkedLoss(torch.autograd.Function):
    """Sum of −log p of tokens, whose gradient is computed in the forward pass, a chunk of rows at a time.

    The logits of all tokens and their gradient are the largest tensors of fine-tuning: 0.6 MB of float32 a token for
    a vocabulary of 152,000, three times over. Because the loss is a scalar, its gradient with respect to the head's
    input and weights is known up to a factor before the backward pass begins. So each chunk of logits is used and
    freed, and none is computed twice (the idea of https://arxiv.org/abs/2410.10989, with the head's own forward pass).
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        hidden: Tensor,
        targets: Tensor,
        logits: Callable[[Tensor], Tensor],
        at_once: int,
        factor: Tensor | float,
        *weights: Tensor,
    ) -> Tensor:
        """The sum, float32 scalar.

        Args:
            ctx: Keeps the gradients.
            hidden: The head's input, ``[tokens, hidden]``.
            targets: int64 ``[tokens]``.
            logits: Maps ``[rows, hidden]`` to ``[rows, vocabulary]``.
            at_once: Rows in a chunk.
            factor: What the backward pass will multiply by, as far as known.
            weights: All that ``logits`` depends on.
        """
        trained = [index for index, weight in enumerate(weights) if weight.requires_grad]
        hidden_grads, weight_grads = list[Tensor](), list[Tensor]()
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for rows, row_targets in zip(hidden.split(at_once), targets.split(at_once), strict=True):
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                loss = cross_entropy(logits(leaf).float(), row_targets, reduction="sum")
                scaled = loss * factor
            inputs = [leaf, *(weights[index] for index in trained)]
            hidden_grad, *grads = torch.autograd.grad(scaled, inputs, materialize_grads=True)
            total += loss.detach()
            hidden_grads.append(hidden_grad)
            if len(hidden) <= at_once:
                weight_grads = grads
            elif not weight_grads:  # summed in float32, and rounded once
                weight_grads = [grad.float() for grad in grads]
            else:
                for summed, grad in zip(weight_grads, grads, strict=True):
                    summed += grad
        ctx.hidden_grad = torch.cat(hidden_grads)
        ctx.weight_grads = dict(zip(trained, weight_grads, strict=True))
        ctx.dtypes = [weight.dtype for weight in weights]
        ctx.factor = factor
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The stored gradients times the rest of their factor, in place, and therefore only once."""
        if ctx.weight_grads is None:
            raise RuntimeError("the gradients of this loss can be taken only once: they are changed in place")
        grads, ctx.weight_grads = ctx.weight_grads, None
        missing = scale / ctx.factor
        of_weights = [
            grads.pop(index).mul_(missing).to(dtype) if index in grads else None
            for index, dtype in enumerate(ctx.dtypes)
        ]
        return ctx.hidden_grad * missing, None, None, None, None, *of_weights
