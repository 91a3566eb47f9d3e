"""One tokenization with the place of every token in the text."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from act_lightning.data.labeling.spelling import spelled_starts

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
