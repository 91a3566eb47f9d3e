"""Which tokens are answer tokens: the positions that scores, loss and evaluation count."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from act_lightning.data.conversations import Conversation
from act_lightning.data.templates import Rendered, Template
from act_lightning.data.tokens import OffsetTokenizer, Tokens
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue, located


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


def answer_spans(tokens: Tokens, answers: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """First answer token of each answer and the one after its last, without answers that have none.

    A token belongs to an answer when it starts at or after its first character, up to and including the first special
    token at or after the answer's end. If none stands there before the next answer, the answer ends with its text.

    Args:
        tokens: A tokenized text.
        answers: Where each answer starts and ends in it, in order.

    >>> tokens = Tokens(ids=[7, 8, 9, 2, 5], starts=[0, 2, 4, 6, 7], special=[False, False, False, True, False])
    >>> answer_spans(tokens, [(2, 6)])
    [(1, 4)]
    """
    limits = [*(start for start, _ in answers[1:]), sys.maxsize]
    spans = []
    for (start, end), limit in zip(answers, limits, strict=True):
        first, after = bisect_left(tokens.starts, start), bisect_left(tokens.starts, end)
        beyond = range(after, bisect_left(tokens.starts, limit))
        spans.append((first, next((index + 1 for index in beyond if tokens.special[index]), after)))
    return [(first, stop) for first, stop in spans if first < stop]


def answer_mask(tokens: Tokens, answers: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens belong to an answer, as :func:`answer_spans` has it.

    >>> tokens = Tokens(ids=[7, 8, 9, 2, 5], starts=[0, 2, 4, 6, 7], special=[False, False, False, True, False])
    >>> answer_mask(tokens, [(2, 6)])
    [False, True, True, True, False]
    """
    mask = [False] * len(tokens.ids)
    for first, stop in answer_spans(tokens, answers):
        mask[first:stop] = [True] * (stop - first)
    return mask


def has_answers(conversation: Conversation) -> bool:
    """Whether an assistant speaks in the conversation, and never says nothing but white space."""
    answers = [message["content"] for message in conversation if message["role"] == "assistant"]
    return bool(answers) and all(answer.strip() for answer in answers)


class Encoder:
    """Turns conversations into samples: one template, one tokenizer, one limit.

    Args:
        template: How a conversation becomes text.
        tokenizer: Any tokenizer; one without offsets must spell the texts that it was given.
        max_length: Longer sequences are cut at the end.

    Raises:
        ActError: If an end-of-sequence token must close the text, and the tokenizer has none.
    """

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.template = template
        self.tokenize = OffsetTokenizer(tokenizer)
        self.eos: int | None = tokenizer.eos_token_id
        self.max_length = max_length
        if template.close_with_eos and self.eos is None:
            problem = "closes an answer with the end-of-sequence token, and the target's tokenizer has none"
            raise ActError(ConfigIssue(template.setting, template.written, problem, "Use a chat template."))

    def __call__(self, conversation: Conversation, place: str | None = None) -> Sample | None:
        """The conversation as a sample, or ``None`` if an answer is empty or no answer token is left.

        Args:
            conversation: Turns with ``role`` and ``content``.
            place: Where it comes from, such as a file with a line number, for messages.

        Raises:
            ActError: If the template or the tokenizer cannot tell it.
        """
        (sample,) = self.together([conversation], [place])
        return sample

    def together(self, conversations: Sequence[Conversation], places: Sequence[str | None]) -> list[Sample | None]:
        """What each of several conversations gives alone: all are rendered, then all tokenized, then all labeled.

        Each of these steps keeps its own data in the processor's caches, which is a third faster than in turns.

        Args:
            conversations: Some hundreds: their texts are all held.
            places: Where each comes from.

        Raises:
            ActError: If the template or the tokenizer cannot tell one of them.
        """
        told = [has_answers(conversation) for conversation in conversations]
        all_rendered = [
            self.template.render(conversation, place) if answered else None
            for answered, conversation, place in zip(told, conversations, places, strict=True)
        ]
        all_tokens = [
            self._tokens(rendered, place) if rendered else None
            for rendered, place in zip(all_rendered, places, strict=True)
        ]
        return [
            self._sample(rendered, tokens) if rendered and tokens else None
            for rendered, tokens in zip(all_rendered, all_tokens, strict=True)
        ]

    def _sample(self, rendered: Rendered, tokens: Tokens) -> Sample | None:
        spans = answer_spans(tokens, rendered.answers)
        if not spans or spans[0][0] >= self.max_length:
            return None
        kept = array("q", tokens.ids[: min(spans[-1][1], self.max_length)])
        ids = torch.frombuffer(kept, dtype=torch.int64)  # several times as fast as from a list
        labels = torch.full_like(ids, IGNORED)
        for first, stop in spans:
            labels[first:stop] = ids[first:stop]
        return Sample(ids, labels, rendered.text, cut=spans[-1][1] > self.max_length)

    def prompt_length(self, conversation: Conversation, place: str | None = None) -> int | None:
        """Number of tokens before the first answer token; ``None`` if there is none, whatever the limit.

        Args:
            conversation: Turns with ``role`` and ``content``.
            place: Where it comes from, for messages.

        Raises:
            ActError: If the template or the tokenizer cannot tell it.
        """
        if not has_answers(conversation):
            return None
        rendered = self.template.render(conversation, place)
        spans = answer_spans(self._tokens(rendered, place), rendered.answers)
        return spans[0][0] if spans else None

    def _tokens(self, rendered: Rendered, place: str | None) -> Tokens:
        with located(place):
            tokens = self.tokenize(rendered.text, rendered.add_special_tokens)
        return self._closed(tokens, len(rendered.text)) if rendered.close_with_eos else tokens

    def _closed(self, tokens: Tokens, end: int) -> Tokens:
        """The end-of-sequence token follows the text, before what the tokenizer adds, if it does not add just that."""
        place = bisect_left(tokens.starts, end)
        if self.eos is None or tokens.ids[place : place + 1] == [self.eos]:
            return tokens
        return Tokens(
            [*tokens.ids[:place], self.eos, *tokens.ids[place:]],
            [*tokens.starts[:place], end, *tokens.starts[place:]],
            [*tokens.special[:place], True, *tokens.special[place:]],
        )


def encode(
    conversation: Conversation, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Sample | None:
    """One conversation as a sample, or ``None`` if an answer is empty or no answer token is left.

    See :class:`Encoder`, which is faster for many.
    """
    return Encoder(template, tokenizer, max_length)(conversation)
