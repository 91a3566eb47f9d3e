"""Which tokens are answer tokens: the positions that scores, loss and evaluation count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from act_lightning.data.shapes import Conversation
from act_lightning.data.templates import Rendered, Template
from act_lightning.data.tokens import OffsetTokenizer, Tokens
from act_lightning.errors import ActError, Fault

IGNORED = -100


@dataclass(frozen=True, eq=False)
class Sample:
    """One conversation as token ids.

    Attributes:
        input_ids: int64 ``[tokens]``.
        labels: int64 ``[tokens]``: the id itself at answer tokens, −100 elsewhere; not shifted.
        text: The text it was made from, where it is known.
        cut: Whether it was longer than the limit.
    """

    input_ids: Tensor
    labels: Tensor
    text: str = ""
    cut: bool = False


def answer_mask(tokens: Tokens, answers: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens belong to an answer.

    A token does when it starts at or after the first character of an answer, up to and including the first special
    token at or after the answer's end. If none stands there before the next answer, the answer ends with its text.

    Args:
        tokens: A tokenized text.
        answers: Where each answer starts and ends in it, in order.

    >>> tokens = Tokens(ids=[7, 8, 9, 2, 5], starts=[0, 2, 4, 6, 7], special=[False, False, False, True, False])
    >>> answer_mask(tokens, [(2, 6)])
    [False, True, True, True, False]
    """
    mask = [False] * len(tokens.ids)
    limits = [*(start for start, _ in answers[1:]), math.inf]
    for (start, end), limit in zip(answers, limits, strict=True):
        last = _last_token(tokens, end, limit)
        for index in range(last + 1):
            mask[index] |= tokens.starts[index] >= start
    return mask


def _last_token(tokens: Tokens, end: int, limit: float) -> int:
    for index, (start, special) in enumerate(zip(tokens.starts, tokens.special, strict=True)):
        if special and end <= start < limit:
            return index
    return max((index for index, start in enumerate(tokens.starts) if start < end), default=-1)


def has_answers(conversation: Conversation) -> bool:
    """Whether an assistant speaks in the conversation, and never says nothing but white space."""
    answers = [message["content"] for message in conversation if message["role"] == "assistant"]
    return bool(answers) and all(answer.strip() for answer in answers)


class Encoder:
    """Turns conversations into samples: one template, one tokenizer, one limit.

    Args:
        template: How a conversation becomes text.
        tokenizer: A fast tokenizer.
        max_length: Longer sequences are cut at the end.

    Raises:
        ActError: If the tokenizer has no offsets.
    """

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.template = template
        self.tokenize = OffsetTokenizer(tokenizer)
        self.eos: int | None = tokenizer.eos_token_id
        self.max_length = max_length

    def __call__(self, conversation: Conversation) -> Sample | None:
        """The conversation as a sample, or ``None`` if an answer is empty or no answer token is left.

        Args:
            conversation: Turns with ``role`` and ``content``.

        Raises:
            ActError: If the template cannot tell it, or the tokenizer lacks the token that closes it.
        """
        if not has_answers(conversation):
            return None
        rendered = self.template.render(conversation)
        tokens = self._closed(self.tokenize(rendered.text, rendered.add_special_tokens), rendered)
        mask = answer_mask(tokens, rendered.answers)
        length = max((index + 1 for index, answer in enumerate(mask) if answer), default=0)
        kept = min(length, self.max_length)
        if not any(mask[:kept]):
            return None
        ids = torch.tensor(tokens.ids[:kept])
        labels = torch.where(torch.tensor(mask[:kept]), ids, IGNORED)
        return Sample(ids, labels, rendered.text, cut=length > kept)

    def _closed(self, tokens: Tokens, rendered: Rendered) -> Tokens:
        if not rendered.close_with_eos:
            return tokens
        if self.eos is None:
            rule = "closes an answer with the end-of-sequence token, and the target's tokenizer has none"
            raise ActError(Fault("data.template", "text", rule, "Use a chat template."))
        if tokens.ids and tokens.ids[-1] == self.eos:
            return tokens
        end = len(rendered.text)
        return Tokens([*tokens.ids, self.eos], [*tokens.starts, end], [*tokens.special, True])


def encode(
    conversation: Conversation, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Sample | None:
    """One conversation as a sample, or ``None`` if an answer is empty or no answer token is left.

    See :class:`Encoder`, which is faster for many.
    """
    return Encoder(template, tokenizer, max_length)(conversation)
