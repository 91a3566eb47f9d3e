"""Cross-entropy straight from the input of a language model's head, so that few logits are alive at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig

_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse Glimmer
_DIVISOR = "logits_scaling"  # Granite, MiniCPM3
_CLOSE = 1.0e-3


@dataclass(frozen=True)
class LogitTransform:
    """Logits of the head's output: ``cap · tanh(factor · raw / divisor / cap)``; most models have neither of them.

    Attributes:
        factor: What it is multiplied by.
        divisor: What it is divided by.
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

    def explains(self, raw: Tensor, logits: Tensor) -> bool:
        """Whether a model that gave ``logits`` did with ``raw`` what this does."""
        expected, found = self(raw).float(), logits.float().view_as(raw)
        return bool(torch.allclose(found, expected, rtol=_CLOSE, atol=_CLOSE, equal_nan=True))


def logit_transform(config: PretrainedConfig) -> LogitTransform:
    """The tail that a config describes, under the names that transformers has for it.

    >>> from transformers import Gemma2Config, LlamaConfig
    >>> logit_transform(Gemma2Config()).cap, logit_transform(LlamaConfig()).cap
    (30.0, None)
    """
    text = config.get_text_config()
    factors = [value for name in _FACTORS if (value := getattr(text, name, None)) is not None]
    divisor = getattr(text, _DIVISOR, None)
    cap = getattr(text, "final_logit_softcapping", None)
    return LogitTransform(factors[0] if factors else 1.0, 1.0 if divisor is None else divisor, cap)


Logits = Callable[[Tensor], Tensor]


class Scored(NamedTuple):
    """Sums over answer tokens.

    Attributes:
        loss: Sum of −log p, float32 scalar.
        right: Tokens that have the highest logit, int64 scalar; zero where it was not asked for.
        tokens: Answer tokens.
    """

    loss: Tensor
    right: Tensor
    tokens: int


class BoundedLoss(torch.autograd.Function):
    """Sum of −log p of tokens, whose gradient is computed in the forward pass, some rows of logits at a time.

    The logits of all tokens and their gradient are the largest tensors of fine-tuning: 0.6 MB of float32 a token for
    a vocabulary of 152,000, three times over. As the loss is a scalar, the gradient by the head's input and weights is
    known up to a factor before the backward pass begins, so each chunk of logits is used and forgotten, and none
    computed twice (the idea of https://arxiv.org/abs/2410.10989, with the head's own forward pass).
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        hidden: Tensor,
        wanted: Tensor,
        logits: Logits,
        at_once: int,
        factor: Tensor | float,
        *parameters: Tensor,
    ) -> Tensor:
        """The sum.

        Args:
            ctx: Keeps the gradients.
            hidden: The head's input, ``[tokens, hidden]``.
            wanted: The tokens, int64 ``[tokens]``.
            logits: From ``[some tokens, hidden]`` to ``[some tokens, vocabulary]``.
            at_once: How many tokens are some.
            factor: By which the backward pass will multiply, as far as it is known beforehand.
            parameters: All that ``logits`` depends on.
        """
        numbers = [number for number, parameter in enumerate(parameters) if parameter.requires_grad]
        due = [parameters[number] for number in numbers]
        by_hidden, total = [], torch.zeros((), dtype=torch.float32, device=hidden.device)
        sums: list[Tensor] = []
        for some, ids in _chunks(hidden, wanted, at_once):
            with torch.enable_grad():
                leaf = some.detach().requires_grad_()
                loss = cross_entropy(logits(leaf).float(), ids, reduction="sum")
                multiplied = loss * factor
            gradient, *others = torch.autograd.grad(multiplied, [leaf, *due], materialize_grads=True)
            total += loss.detach()
            by_hidden.append(gradient)
            if len(hidden) <= at_once:
                sums = others
            elif not sums:  # they are summed up in float32, and rounded once
                sums = [other.float() for other in others]
            else:
                for summed, other in zip(sums, others, strict=True):
                    summed += other
        ctx.by_hidden = torch.cat(by_hidden)
        ctx.sums = {number: one for number, one in zip(numbers, sums, strict=True)}
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        ctx.factor = factor
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The gradients times what is missing of that of the sum, in place; so once only."""
        if ctx.sums is None:
            raise RuntimeError("the gradients of this loss were given before, and are not kept")
        sums, ctx.sums = ctx.sums, None
        missing = scale / ctx.factor
        of_parameters = [
            sums.pop(number).mul_(missing).to(dtype) if number in sums else None
            for number, dtype in enumerate(ctx.dtypes)
        ]
        return ctx.by_hidden * missing, None, None, None, None, *of_parameters


def bounded_loss(
    head: nn.Module, hidden: Tensor, wanted: Tensor, logits: Logits, at_once: int, factor: Tensor | float
) -> Tensor:
    """Sum of −log p of ``wanted``, float32 scalar, with or without gradients; see :class:`BoundedLoss`."""
    if not len(hidden):
        return logits(hidden).float().sum()  # zero, and still depends on all weights
    if not torch.is_grad_enabled():
        return bounded_scores(hidden, wanted, logits, at_once).loss
    loss: Tensor = BoundedLoss.apply(hidden, wanted, logits, at_once, factor, *_weights(head))  # type: ignore[no-untyped-call]
    return loss


def _weights(head: nn.Module) -> list[Tensor]:
    """All that a head computes with, once each, views of FSDP1's flat parameters included.

    These stand among a module's parameters, or beside them, or in both places, by FSDP1's ``use_orig_params``.
    """
    views = (value for value in vars(head).values() if torch.is_tensor(value) and value.requires_grad)
    return list({id(value): value for value in (*head.parameters(), *views)}.values())


def bounded_scores(hidden: Tensor, wanted: Tensor, logits: Logits, at_once: int) -> Scored:
    """Loss and right tokens, without gradients, ``at_once`` tokens at a time."""
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    right = torch.zeros((), dtype=torch.int64, device=hidden.device)
    with torch.no_grad():
        for some, ids in _chunks(hidden, wanted, at_once):
            found = logits(some)
            loss += cross_entropy(found.float(), ids, reduction="sum")
            right += (found.argmax(-1) == ids).sum()
    return Scored(loss, right, len(wanted))


def _chunks(hidden: Tensor, wanted: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(hidden.split(at_once), wanted.split(at_once), strict=True)
