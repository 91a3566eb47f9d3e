"""Which tokens are answer tokens: the positions that scores, loss and evaluation count."""

from __future__ import annotations

import hashlib
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor

from act_lightning.data.conversations import Conversation
from act_lightning.data.templates import Rendered, Template
from act_lightning.defaults import IGNORED
from act_lightning.errors import ActError, ConfigIssue, located

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_LEVEL_SPACE = "Ġ"


@dataclass(frozen=True, eq=False)
class Sample:
    """One conversation as token ids.

    Attributes:
        input_ids: int64 ``[tokens]``.
        labels: int64 ``[tokens]``: the id itself at answer tokens, −100 elsewhere; not shifted.
        text: The text before tokenization, where it is known.
        cut: Whether it was longer than the limit.
    """

    input_ids: Tensor
    labels: Tensor
    text: str = ""
    cut: bool = False


def fingerprint(samples: Iterable[Sample]) -> str:
    """SHA-256 over the length, the ids and the labels of every sample, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(len(sample.input_ids).to_bytes(8, "little"))
        digest.update(sample.input_ids.numpy().astype("<i8").tobytes())
        digest.update(sample.labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Tokens:
    """A tokenized text.

    Attributes:
        ids: Token ids.
        starts: Index of each token's first character; −1 for tokens that the tokenizer adds before the text, the text's
            length for those it adds after.
        special: Whether each token is a special one.
    """

    ids: list[int]
    starts: list[int]
    special: list[bool]


class OffsetTokenizer:
    """A tokenizer that knows where tokens start: from its offsets, or, without any, from what its tokens decode to."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, by_decoding: bool | None = None) -> None:
        self.tokenizer = tokenizer
        self.by_decoding = not tokenizer.is_fast if by_decoding is None else by_decoding
        added = (token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special)
        self.special_ids = frozenset(tokenizer.all_special_ids).union(added)
        self._has_trimmed_offsets = self._can_call_backend = False
        if not self.by_decoding:
            from transformers import PreTrainedTokenizerFast  # takes half a second

            # Trimmed offsets, as GPT-NeoX has them, leave out the spaces that byte-level tokens begin with.
            processor = tokenizer.backend_tokenizer.post_processor
            self._has_trimmed_offsets = processor is not None and b'"trim_offsets":true' in processor.__getstate__()
            # Some classes, such as Code Llama's, change texts before the backend sees them.
            methods, cls = ("__call__", "_encode_plus"), type(tokenizer)
            self._can_call_backend = all(
                getattr(cls, name, None) is getattr(PreTrainedTokenizerFast, name, None) for name in methods
            )

    def __call__(self, text: str, add_special_tokens: bool) -> Tokens:
        """Tokenize ``text``, including the special tokens in it, without truncation.

        Raises:
            ActError: If the tokenizer has no offsets and its tokens do not decode to the text.
        """
        if self.by_decoding:
            ids, starts = _starts_by_decoding(self.tokenizer, text, add_special_tokens)
            return Tokens(ids, starts, [token in self.special_ids for token in ids])
        backend: Tokenizer = self.tokenizer.backend_tokenizer
        if self._can_call_backend:  # without the batches that transformers makes even of one text
            if backend.truncation is not None:
                backend.no_truncation()
            if backend.padding is not None:
                backend.no_padding()
            backend.encode_special_tokens = self.tokenizer.split_special_tokens
            encoding = backend.encode(text, add_special_tokens=add_special_tokens)
        else:
            options = {"add_special_tokens": add_special_tokens, "return_offsets_mapping": True}
            encoding = self.tokenizer(text, truncation=False, verbose=False, **options).encodings[0]
        ids, starts = encoding.ids, [start for start, _ in encoding.offsets]
        if self._has_trimmed_offsets:
            pieces = self.tokenizer.convert_ids_to_tokens(ids)
            spaces = [len(piece) - len(piece.lstrip(_BYTE_LEVEL_SPACE)) for piece in pieces]
            starts = [max(0, start - count) for start, count in zip(starts, spaces, strict=True)]
        if add_special_tokens:  # the offsets of added tokens read (0, 0)
            in_text = [sequence is not None for sequence in encoding.sequence_ids]
            first = in_text.index(True) if True in in_text else len(in_text)
            for index, start in enumerate(starts):
                starts[index] = start if in_text[index] else -1 if index < first else len(text)
        return Tokens(ids, starts, [token in self.special_ids for token in ids])


def _starts_by_decoding(
    tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool
) -> tuple[list[int], list[int]]:
    """The ids of a text, and the first character of each, as ``Tokens.starts`` has them."""

    def encode(special: bool) -> list[int]:
        return list(tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"])

    ids = encode(False)
    starts = _decoded_starts(tokenizer, ids, text)
    if not add_special_tokens:
        return ids, starts
    whole = encode(True)
    for before in range(len(whole) - len(ids) + 1):
        if whole[before : before + len(ids)] == ids:
            after = len(whole) - before - len(ids)
            return whole, [-1] * before + starts + [len(text)] * after
    raise _decoding_error(tokenizer, text, "with special tokens it tokenizes the text differently")


def _decoded_starts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[int]:
    """Token k starts where the text of the tokens before it ends; all tokens of a character start at this character.

    A few tokens are decoded at a time: those since the last whole character, after the few decoded before them. These
    give their context to tokens whose text depends on their neighbors, such as a space at the beginning.
    """

    def decode(part: Sequence[int]) -> str:
        options = {"clean_up_tokenization_spaces": False, "spaces_between_special_tokens": False}
        return str(tokenizer.decode(list(part), skip_special_tokens=False, **options))

    starts: list[int] = []
    context, decoded, pos, rest = 0, 0, 0, ""
    for index in range(len(ids)):
        shared = next((length for length in range(len(rest), 0, -1) if text.startswith(rest[:length], pos)), 0)
        starts.append(pos + shared)
        rest = decode(ids[context : index + 1])[len(decode(ids[context:decoded])) :]
        # Some tokenizers add a space before a text and after special tokens, or drop the one that a text begins with.
        variants = (rest, rest.removeprefix(" "), " " * (pos == 0) + rest)
        length = next((len(variant) for variant in variants if text.startswith(variant, pos)), 0)
        if length:
            context, decoded, pos, rest = decoded, index + 1, pos + length, ""
    if pos != len(text):
        raise _decoding_error(tokenizer, text, f"its tokens decode to {rest!r}, not {text[pos:]!r}")
    return starts


def _decoding_error(tokenizer: PreTrainedTokenizerBase, text: str, reason: str) -> ActError:
    problem = f"has no offsets, so its tokens must decode to the text, to find where an answer starts: {reason}"
    hint = "Correct the row, or use a model that has a tokenizer.json."
    return ActError(ConfigIssue(f"model.target, {type(tokenizer).__name__}", text, problem, hint))


def answer_spans(tokens: Tokens, answers: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Each answer's first token and the one after its last, without answers that have no tokens.

    A token belongs to an answer if it starts at or after the answer's first character, up to and including the first
    special token at or after the answer's end. If there is none before the next answer, the answer ends with its text.

    ``answers`` are the start and the end of each answer in the text, in order.

    >>> tokens = Tokens(ids=[7, 8, 9, 2, 5], starts=[0, 2, 4, 6, 7], special=[False, False, False, True, False])
    >>> answer_spans(tokens, [(2, 6)])
    [(1, 4)]
    """
    limits = [*(start for start, _ in answers[1:]), sys.maxsize]
    spans = []
    for (start, end), limit in zip(answers, limits, strict=True):
        first, after = bisect_left(tokens.starts, start), bisect_left(tokens.starts, end)
        candidates = range(after, bisect_left(tokens.starts, limit))
        stop = next((index + 1 for index in candidates if tokens.special[index]), after)
        if first < stop:
            spans.append((first, stop))
    return spans


def has_answers(conversation: Conversation) -> bool:
    """Whether the conversation has assistant turns, none of them blank."""
    answers = [message["content"] for message in conversation if message["role"] == "assistant"]
    return bool(answers) and all(answer.strip() for answer in answers)


class Encoder:
    """Turns conversations into samples, cut at the end where they are longer than ``max_length``.

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
            raise ActError(ConfigIssue(template.setting, template.source, problem, "Use a chat template."))

    def __call__(self, conversation: Conversation, location: str | None = None) -> Sample | None:
        """The sample of one conversation; see :meth:`encode_batch`."""
        (sample,) = self.encode_batch([conversation], [location])
        return sample

    def encode_batch(
        self, conversations: Sequence[Conversation], locations: Sequence[str | None]
    ) -> list[Sample | None]:
        """The samples of several conversations; ``None`` if an answer is empty or no answer token is left.

        Rendering all, then tokenizing all, then labeling all is a third faster than one conversation after the other,
        since each step finds its own data in the processor's caches.

        Raises:
            ActError: If the template or the tokenizer cannot process one of them.
        """
        self.template.read_ahead([conversation for conversation in conversations if has_answers(conversation)])
        all_rendered: list[Rendered | None] = []
        for conversation, location in zip(conversations, locations, strict=True):
            with located(location):
                all_rendered.append(self.template.render(conversation) if has_answers(conversation) else None)
        all_tokens: list[Tokens | None] = []
        for rendered, location in zip(all_rendered, locations, strict=True):
            with located(location):
                all_tokens.append(self._tokenize(rendered) if rendered else None)
        return [
            self._label(rendered, tokens) if rendered and tokens else None
            for rendered, tokens in zip(all_rendered, all_tokens, strict=True)
        ]

    def prompt_length(self, conversation: Conversation) -> int | None:
        """Number of tokens before the first answer token; ``None`` if there is none, whatever the limit."""
        if not has_answers(conversation):
            return None
        rendered = self.template.render(conversation)
        spans = answer_spans(self._tokenize(rendered), rendered.answers)
        return spans[0][0] if spans else None

    def _tokenize(self, rendered: Rendered) -> Tokens:
        tokens = self.tokenize(rendered.text, rendered.add_special_tokens)
        if not rendered.close_with_eos or self.eos is None:
            return tokens
        # The end-of-sequence token follows the text, before what the tokenizer adds, unless it adds just that.
        end = len(rendered.text)
        index = bisect_left(tokens.starts, end)
        if tokens.ids[index : index + 1] != [self.eos]:
            tokens.ids.insert(index, self.eos)
            tokens.starts.insert(index, end)
            tokens.special.insert(index, True)
        return tokens

    def _label(self, rendered: Rendered, tokens: Tokens) -> Sample | None:
        spans = answer_spans(tokens, rendered.answers)
        if not spans or spans[0][0] >= self.max_length:
            return None
        end = spans[-1][1]
        # A buffer is read several times as fast as a list.
        ids = torch.frombuffer(array("q", tokens.ids[: min(end, self.max_length)]), dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        for first, stop in spans:
            labels[first:stop] = ids[first:stop]
        return Sample(ids, labels, rendered.text, cut=end > self.max_length)
