"""One tokenization with the place of every token in the text, also for tokenizers without offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from act_lightning.errors import ActError, ConfigIssue


def spelled_starts(
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
        locate = spelled_starts if self.by_prefixes else self._offset_starts
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
