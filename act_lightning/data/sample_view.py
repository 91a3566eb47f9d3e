"""A sample as a person can check it: what is prompt, what is answer, and which tokens are special."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from act_lightning.data.labels import Sample
from act_lightning.defaults import IGNORED

_LONGEST = 800  # characters of one piece that are shown
_STYLES = {
    (False, False): "dim",
    (False, True): "cyan",
    (True, False): "bold green",
    (True, True): "bold magenta",
}

_PICTURES = 0x2400  # where Unicode has a picture of each control
_TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # what turns the direction of writing, and back
_VISIBLE = {code: chr(_PICTURES + code) for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: "␡"} | {code: f"<U+{code:04X}>" for code in (*range(0x80, 0xA0), *_TURNING)}


class Piece(NamedTuple):
    """Tokens of one kind that follow each other.

    Attributes:
        text: What they stand for.
        answer: Whether they are answer tokens; others are ignored by scores and loss.
        special: Whether they are special tokens.
    """

    text: str
    answer: bool
    special: bool


def pieces(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The tokens of a sample as text, in runs of one kind.

    Args:
        sample: Ids and labels.
        tokenizer: The tokenizer that made the ids.
    """
    added = (token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special)
    special_ids = {*tokenizer.all_special_ids, *added}
    ids = sample.input_ids.tolist()
    kinds = [(label != IGNORED, token in special_ids) for token, label in zip(ids, sample.labels.tolist(), strict=True)]
    found, done, text = [], 0, ""
    # Special tokens stand one by one, whatever is next to them.
    for (answer, special, _), run in groupby((*kind, place if kind[1] else -1) for place, kind in enumerate(kinds)):
        done += len(list(run))
        # What is decoded alone would lose the blank it begins with, in tokenizers of SentencePiece.
        longer = str(tokenizer.decode(ids[:done], clean_up_tokenization_spaces=False))
        found.append(Piece(longer[len(text) :], answer, special))
        text = longer
    return found


def chosen(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Some samples, spread evenly from the first to the last.

    Args:
        samples: All of them.
        count: How many to take.

    >>> chosen("abcdefg", 3), chosen("ab", 3), chosen("ab", 1)
    (['a', 'd', 'g'], ['a', 'b'], ['a'])
    """
    count = min(count, len(samples))
    return [samples[place * (len(samples) - 1) // max(count - 1, 1)] for place in range(count)]


def legend() -> Text:
    """How the kinds of tokens are shown, with color and without."""
    answered = ("answer", _STYLES[True, False]), ("⟨special⟩", _STYLES[True, True])
    ignored = ("prompt", _STYLES[False, False]), " ", ("⟨special⟩", _STYLES[False, True])
    return Text.assemble("ignored: ", *ignored, "   counted: ⟦", *answered, "⟧")


def colored(shown: Sequence[Piece]) -> Text:
    """Pieces in color; also without color, answers stand between ⟦ ⟧ and special tokens between ⟨ ⟩.

    Args:
        shown: The pieces of a sample.
    """
    text, inside = Text(), False
    for piece in shown:
        if piece.answer != inside:
            text.append("⟦" if piece.answer else "⟧")
            inside = piece.answer
        content = _shortened(visible(piece.text))
        text.append(f"⟨{content}⟩" if piece.special else content, _STYLES[piece.answer, piece.special])
    return text.append("⟧") if inside else text


def visible(text: str) -> str:
    r"""Text whose controls are seen and do nothing: a terminal obeys an escape, and one that turns the direction hides.

    >>> visible("a\x1b[2J\r\n\tb\u202ec")
    'a␛[2J␍\n\tb<U+202E>c'
    """
    return text.translate(_VISIBLE)


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} …[{len(text) - 2 * half:,} characters]… {text[-half:]}"
