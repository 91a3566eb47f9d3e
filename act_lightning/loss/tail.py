"""What a causal language model does with the output of its head before it calls it logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse Glimmer
_DIVISOR = "logits_scaling"  # Granite, MiniCPM3
_CLOSE = 1.0e-3


@dataclass(frozen=True)
class Tail:
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


def tail_of(config: PretrainedConfig) -> Tail:
    """The tail that a config describes, under the names that transformers has for it.

    >>> from transformers import Gemma2Config, LlamaConfig
    >>> tail_of(Gemma2Config()).cap, tail_of(LlamaConfig()).cap
    (30.0, None)
    """
    text = config.get_text_config()
    factors = [value for name in _FACTORS if (value := getattr(text, name, None)) is not None]
    divisor = getattr(text, _DIVISOR, None)
    cap = getattr(text, "final_logit_softcapping", None)
    return Tail(factors[0] if factors else 1.0, 1.0 if divisor is None else divisor, cap)
