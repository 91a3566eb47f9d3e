"""One tokenization with the place of every token in the text."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from act_lightning.errors import ActError, Fault

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
    """A tokenizer that tells where tokens start.

    Args:
        tokenizer: A fast tokenizer.

    Raises:
        ActError: If the tokenizer has no offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            remedy = "Use a model that has a tokenizer.json."
            raise ActError(Fault("model.target", type(tokenizer).__name__, "must be a fast tokenizer", remedy))
        self.tokenizer = tokenizer
        added = (token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special)
        self.special_ids = frozenset(tokenizer.all_special_ids).union(added)
        self._trims_spaces = _trims_spaces(tokenizer)

    def __call__(self, text: str, add_special_tokens: bool) -> Tokens:
        """Tokenize ``text``, special tokens of its own included, whole.

        Args:
            text: Any text.
            add_special_tokens: Whether to add what the tokenizer adds by default.
        """
        encoding = self.tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, truncation=False, verbose=False
        )
        ids: list[int] = encoding["input_ids"]
        starts = [start for start, _ in encoding["offset_mapping"]]
        if self._trims_spaces:
            pieces = self.tokenizer.convert_ids_to_tokens(ids)
            starts = [max(0, start - _spaces(piece)) for start, piece in zip(starts, pieces, strict=True)]
        inside = [sequence is not None for sequence in encoding.sequence_ids(0)]
        self._place_added(starts, inside, len(text))
        return Tokens(ids, starts, [token in self.special_ids for token in ids])

    @staticmethod
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
