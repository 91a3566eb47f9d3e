"""One tokenization with the place of every token in the text, also for tokenizers without offsets."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from act_lightning.data.conversations import Conversation
from act_lightning.data.templates import Rendered, Template
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue, located


def starts_by_decoding(
    tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool
) -> tuple[list[int], list[int]]:
    """The ids of a text, and the first character of each: -1 for tokens added before the text, its length after it.

    Token k starts where the spelling of the tokens before it ends. A character of several tokens is where all of them
    start, as offsets have it.

    Args:
        tokenizer: Any tokenizer whose tokens spell the text that it was given.
        text: Any text.
        add_special_tokens: Whether to add what the tokenizer adds by default.

    Raises:
        ActError: If the tokens spell another text, in which no place can be found again.
    """
    ids = _ids(tokenizer, text, add_special_tokens=False)
    starts = _starts(tokenizer, ids, text)
    if not add_special_tokens:
        return ids, starts
    whole = _ids(tokenizer, text, add_special_tokens=True)
    for before in range(len(whole) - len(ids) + 1):
        if whole[before : before + len(ids)] == ids:
            after = len(whole) - before - len(ids)
            return whole, [-1] * before + starts + [len(text)] * after
    raise _other_text(tokenizer, text, "with special tokens it reads the text otherwise than without")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=add_special_tokens, truncation=False, verbose=False)["input_ids"])


def _starts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[int]:
    """Spell a few tokens at a time: those since the last whole character, after the few that were spelled before them.

    The earlier ones keep the spelling of a token that depends on its neighbors, such as a space at the beginning.
    """
    starts: list[int] = []
    earlier, spelled, place, rest = 0, 0, 0, ""
    for index in range(len(ids)):
        starts.append(place + _shared(rest, text, place))
        known = _spelling(tokenizer, ids[earlier:spelled])
        rest = _spelling(tokenizer, ids[earlier : index + 1])[len(known) :]
        if (end := _end(rest, text, place)) > place:
            earlier, spelled, place, rest = spelled, index + 1, end, ""
    if place != len(text):
        raise _other_text(tokenizer, text, f"its tokens spell {rest!r} where {text[place:]!r} stands")
    return starts


def _end(spelling: str, text: str, place: int) -> int:
    """Where a spelling ends that begins at a place of the text; the place itself if the text goes on otherwise.

    Some tokenizers add a space before a text and after special tokens, or leave out the one that a text begins with.
    """
    for said in (spelling, spelling.removeprefix(" "), " " * (place == 0) + spelling):
        if text.startswith(said, place):
            return place + len(said)
    return place


def _shared(one: str, text: str, place: int) -> int:
    """Length of what both begin with, the text from a place in it."""
    return next((length for length in range(len(one), 0, -1) if text.startswith(one[:length], place)), 0)


def _spelling(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    options = {"clean_up_tokenization_spaces": False, "spaces_between_special_tokens": False}
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, **options))


def _other_text(tokenizer: PreTrainedTokenizerBase, text: str, why: str) -> ActError:
    problem = f"has no offsets, and must spell a text as it was given, to tell where an answer starts: {why}"
    hint = "Mend the row, or use a model that has a tokenizer.json."
    return ActError(ConfigIssue(f"model.target, {type(tokenizer).__name__}", text, problem, hint))


_BYTE_LEVEL_SPACE = "Ġ"


@dataclass(frozen=True)
class Tokens:
    """A text as tokens.

    Attributes:
        ids: Token ids.
        starts: First character of each token; before the text and after it for tokens that the tokenizer adds.
        special: Whether each token is a special one.
    """

    ids: list[int]
    starts: list[int]
    special: list[bool]


class OffsetTokenizer:
    """A tokenizer that tells where tokens start: by its offsets, or, if it has none, by what its first tokens spell.

    Args:
        tokenizer: Any tokenizer of transformers.
        by_prefixes: Whether to do without offsets; by default where there are none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, by_prefixes: bool | None = None) -> None:
        self.tokenizer = tokenizer
        self.by_prefixes = not tokenizer.is_fast if by_prefixes is None else by_prefixes
        added = (token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special)
        self.special_ids = frozenset(tokenizer.all_special_ids).union(added)
        self._trims_spaces = not self.by_prefixes and _trims_spaces(tokenizer)
        self._is_plain = not self.by_prefixes and _is_plain(tokenizer)

    def __call__(self, text: str, add_special_tokens: bool) -> Tokens:
        """Tokenize ``text``, special tokens of its own included, whole.

        Args:
            text: Any text.
            add_special_tokens: Whether to add what the tokenizer adds by default.

        Raises:
            ActError: If the tokenizer has no offsets and does not spell the text that it was given.
        """
        locate = starts_by_decoding if self.by_prefixes else self._offset_starts
        ids, starts = locate(self.tokenizer, text, add_special_tokens)
        return Tokens(ids, starts, [token in self.special_ids for token in ids])

    def _offset_starts(
        self, tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool
    ) -> tuple[list[int], list[int]]:
        encoding = self._encoding(tokenizer, text, add_special_tokens)
        ids: list[int] = encoding.ids
        starts = [start for start, _ in encoding.offsets]
        if self._trims_spaces:
            pieces = tokenizer.convert_ids_to_tokens(ids)
            starts = [max(0, start - _spaces(piece)) for start, piece in zip(starts, pieces, strict=True)]
        if add_special_tokens:
            _place_added(starts, [sequence is not None for sequence in encoding.sequence_ids], len(text))
        return ids, starts

    def _encoding(self, tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool) -> Encoding:
        """What the tokenizer itself finds, without the batches that transformers makes even of one text."""
        if not self._is_plain:
            options = {"add_special_tokens": add_special_tokens, "return_offsets_mapping": True}
            whole: Encoding = tokenizer(text, truncation=False, verbose=False, **options).encodings[0]
            return whole
        backend: Tokenizer = tokenizer.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        return backend.encode(text, add_special_tokens=add_special_tokens)


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether transformers only hands texts on: some classes, such as Code Llama's, change them before."""
    kind = type(tokenizer)
    methods = ("__call__", "_encode_plus")
    return all(getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None) for name in methods)


def _place_added(starts: list[int], inside: list[bool], end: int) -> None:
    """Give tokens that stand for no text (their offsets read 0, 0) a place before or after it."""
    begun = False
    for index, is_text in enumerate(inside):
        begun = begun or is_text
        if not is_text:
            starts[index] = end if begun else -1


def _trims_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether offsets leave out the spaces that byte-level tokens begin with, as GPT-NeoX's do."""
    processor = tokenizer.backend_tokenizer.post_processor
    return processor is not None and b'"trim_offsets":true' in processor.__getstate__()


def _spaces(piece: str) -> int:
    return len(piece) - len(piece.lstrip(_BYTE_LEVEL_SPACE))


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
