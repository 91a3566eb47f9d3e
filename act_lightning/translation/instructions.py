"""What the translating model is told, and how its reply is read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TypedDict

Message = dict[str, str]


class Texts(TypedDict):
    """One question and its answer.

    Attributes:
        prompt: The question.
        answer: The answer.
    """

    prompt: str
    answer: str


LANGUAGES = {
    "ar": "Modern Standard Arabic",
    "bn": "Bengali",
    "cs": "Czech",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sr": "Serbian",
    "sw": "Swahili",
    "te": "Telugu",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Simplified Chinese",
}
"""How languages are named to the model; of others it is told the code."""

# The paper names its models but prints no prompt; this one is ours.
_INSTRUCTIONS = """\
You translate questions and their answers into {language}, as material to train a language model on. You are given a \
JSON object with the keys "prompt" and "answer". Reply with one JSON object that has the same two keys and holds the \
translations, and with nothing else.

1. Translate all of it, faithfully, in the words a native speaker would use. Do not answer the question, correct a \
mistake, explain, shorten or add anything.
2. Marks such as <k1/> stand for formulas, code and final answers. Copy every mark exactly once into the translation \
of the text it stands in, at the place where it belongs. A line that is only a mark stays a line of its own.
3. Copy every number in the digits and the format of the original: 0-9, "." as the decimal point, "," between \
thousands. What the original writes as a word, write as a word.
4. Keep line breaks, lists and Markdown."""
_CORRECTION = "The translation cannot be used:\n{issues}\nReply with the whole JSON object, corrected."
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)


class UnreadableReplyError(ValueError):
    """A reply that is not the JSON object that was asked for; its text says so to the model."""


def request(texts: Texts, language: str) -> list[Message]:
    """The messages that ask for a translation.

    Args:
        texts: Prompt and answer with marks.
        language: Code of the language to translate into.
    """
    name = LANGUAGES.get(language, f"the language whose code is {language!r}")
    return [
        {"role": "system", "content": _INSTRUCTIONS.format(language=name)},
        {"role": "user", "content": json.dumps(texts, ensure_ascii=False)},
    ]


def correction(reply: str, issues: Sequence[str]) -> list[Message]:
    """The messages that follow a reply with issues.

    Args:
        reply: The reply.
        issues: What it did not keep.
    """
    listed = "\n".join(f"- {issue}" for issue in issues)
    return [
        {"role": "assistant", "content": reply},
        {"role": "user", "content": _CORRECTION.format(issues=listed)},
    ]


def read_reply(reply: str) -> Texts:
    r"""The translations in a reply.

    Args:
        reply: A JSON object, also in a Markdown block, also with line breaks in its strings.

    Raises:
        UnreadableReplyError: If it is anything else.

    >>> read_reply('```json\n{"prompt": "Kettő?", "answer": "Igen."}\n```')
    {'prompt': 'Kettő?', 'answer': 'Igen.'}
    """
    fenced = _FENCE.fullmatch(reply)
    try:
        found = json.loads(fenced[1] if fenced else reply, strict=False)
    except ValueError as error:
        raise UnreadableReplyError(f"it is not JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("prompt", "answer")):
        raise UnreadableReplyError('it is not an object whose "prompt" and "answer" are text')
    return Texts(prompt=found["prompt"], answer=found["answer"])
