"""ChatML answer labels once more, byte by byte: no offsets, no templates, nothing of the data room."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

IGNORED = -100


def chatml(messages: Sequence[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and first and last-but-one character of each assistant's content."""
    text, answers = "", []
    for message in messages:
        text += "<|im_start|>" + message["role"] + "\n"
        start = len(text)
        text += message["content"]
        if message["role"] == "assistant":
            answers.append((start, len(text)))
        text += "<|im_end|>\n"
    return text, answers


def token_starts(ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The character in which each token's first byte lies, from the bytes that byte-level tokens spell."""
    character_of_byte = [index for index, character in enumerate(text) for _ in character.encode()]
    starts, position = [], 0
    for piece, token in zip(tokenizer.convert_ids_to_tokens(list(ids)), ids, strict=True):
        starts.append(character_of_byte[position])
        position += len(piece.encode()) if token in tokenizer.all_special_ids else len(piece)
    assert position == len(character_of_byte)
    return starts


def label(
    messages: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> tuple[list[int], list[int]]:
    """Ids and labels of a ChatML conversation: an answer runs from its first character to the next special token."""
    text, answers = chatml(messages)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = token_starts(ids, text, tokenizer)
    labels = [IGNORED] * len(ids)
    for first, end in answers:
        token = 0
        while starts[token] < first:
            token += 1
        while True:
            labels[token] = ids[token]
            if ids[token] in tokenizer.all_special_ids and starts[token] >= end:
                break
            token += 1
    while labels and labels[-1] == IGNORED:
        del labels[-1]
    return ids[: len(labels)][:max_length], labels[:max_length]
