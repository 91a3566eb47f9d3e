"""Where tokens start, by what the first of them spell: for tokenizers without offsets."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from act_lightning.errors import ActError, Fault


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
    rule = f"has no offsets, and must spell a text as it was given, to tell where an answer starts: {why}"
    remedy = "Mend the row, or use a model that has a tokenizer.json."
    return ActError(Fault(f"model.target, {type(tokenizer).__name__}", text, rule, remedy))
