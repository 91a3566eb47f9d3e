"""Which rows go into which language, what the translating model is told, and how its reply is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TypedDict

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import iter_conversations
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.translation.translation_settings import TranslationSettings
from act_lightning.translation.verification import Protected, protect

Message = dict[str, str]


class Texts(TypedDict):
    """One question and its answer."""

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
"""How the model is told each language; for others it is told the code."""

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


@dataclass(frozen=True)
class Original:
    """One row, and its file and line, such as ``math.jsonl:3``."""

    location: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Assignment:
    """One row of an ability that is to be translated into the language of a code."""

    original: Original
    ability: str
    language: str
    settings: TranslationSettings

    @property
    def name(self) -> str:
        """Name of the translated ability: ``<ability>-<language>``."""
        return f"{self.ability}-{self.language}"

    @property
    def model(self) -> str:
        """Name of the model that translates it."""
        return self.settings.model_for(self.ability, self.language)

    @cached_property
    def prompt(self) -> Protected:
        """The question with marks."""
        return protect(self.original.prompt)

    @cached_property
    def answer(self) -> Protected:
        """The answer with marks."""
        return protect(self.original.answer, self.settings.final_answer)

    @property
    def messages(self) -> list[Message]:
        """The messages that ask for a translation."""
        language = LANGUAGES.get(self.language, f"the language whose code is {self.language!r}")
        texts = Texts(prompt=self.prompt.text, answer=self.answer.text)
        return [
            {"role": "system", "content": _INSTRUCTIONS.format(language=language)},
            {"role": "user", "content": json.dumps(texts, ensure_ascii=False)},
        ]

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that decides the reply: model, temperature, output format, and messages."""
        request = [self.model, self.settings.temperature, self.settings.json_mode, self.messages]
        return hashlib.sha256(json.dumps(request, ensure_ascii=False).encode()).hexdigest()


def correction(reply: str, issues: Sequence[str]) -> list[Message]:
    """The messages that follow a reply with issues, and ask for another."""
    listed = "\n".join(f"- {issue}" for issue in issues)
    return [{"role": "assistant", "content": reply}, {"role": "user", "content": _CORRECTION.format(issues=listed)}]


class UnreadableReplyError(ValueError):
    """A reply that is not the JSON object asked for; the error's text is meant for the model."""


def read_reply(reply: str) -> Texts:
    r"""The translations in a reply: a JSON object, perhaps in a Markdown block or with line breaks in its strings.

    Raises:
        UnreadableReplyError: It is anything else.

    >>> read_reply('```json\n{"prompt": "Kettő?", "answer": "Igen."}\n```')
    {'prompt': 'Kettő?', 'answer': 'Igen.'}
    """
    fenced = _FENCE.fullmatch(reply)
    try:
        texts = json.loads(fenced[1] if fenced else reply, strict=False)
    except ValueError as error:
        raise UnreadableReplyError(f"it is not JSON ({error})") from error
    if not isinstance(texts, dict) or not all(isinstance(texts.get(key), str) for key in ("prompt", "answer")):
        raise UnreadableReplyError('it is not an object whose "prompt" and "answer" are text')
    return Texts(prompt=texts["prompt"], answer=texts["answer"])


def assignments(abilities: Mapping[str, AbilityData], settings: TranslationSettings) -> list[Assignment]:
    """Everything that is to be translated, ability by ability, language by language.

    Raises:
        ActError: Rows cannot be read, are not one question and one answer, or are too few for all languages.
    """
    work = []
    for name in settings.abilities or abilities:
        rows = _rows_by_language(name, abilities[name], settings)
        for language in settings.only or settings.languages:
            work += [Assignment(original, name, language, settings) for original in rows[language]]
    return work


def _rows_by_language(name: str, data: AbilityData, settings: TranslationSettings) -> dict[str, list[Original]]:
    """The same rows for every language, or for an ability in ``distinct`` rows of its own for each."""
    languages = settings.languages
    if name not in settings.distinct:
        shared = list(_originals(name, data))
        return dict.fromkeys(languages, shared)
    size = data.limit or 0
    rows = list(islice(_distinct(name, data, size), size * (len(languages) + 1)))
    last_used = max(map(languages.index, settings.only or languages))
    needed = size * (last_used + 2)
    if len(rows) < needed:
        problem = f"must have {needed:,} different prompts for {size:,} to each language, but has {len(rows):,}"
        hint = "Lower limit, drop a language, or take the ability out of translate.distinct."
        raise ActError(ConfigIssue(f"data.abilities.{name}", data.path, problem, hint))
    return {code: rows[size * block :][:size] for block, code in enumerate(languages, start=1)}


def _distinct(name: str, data: AbilityData, size: int) -> Iterator[Original]:
    """The ability's own rows, then further ones with a new prompt.

    Sets such as MetaMathQA hold a question many times with other answers: rows alone would not be distinct samples.
    """
    seen: set[bytes] = set()
    for number, original in enumerate(_originals(name, replace(data, limit=None))):
        prompt = hashlib.sha256(" ".join(original.prompt.split()).casefold().encode()).digest()
        if number < size or prompt not in seen:
            yield original
        seen.add(prompt)


def _originals(name: str, data: AbilityData) -> Iterator[Original]:
    hint = "Leave the row out with filter."
    for location, messages in iter_conversations(data, f"data.abilities.{name}"):
        roles = [message["role"] for message in messages]
        if roles != ["user", "assistant"]:
            problem = "must be one question and one answer to be translated"
            raise ActError(ConfigIssue(location, roles, problem, hint))
        prompt, answer = (message["content"] for message in messages)
        if not (prompt.strip() and answer.strip()):
            raise ActError(ConfigIssue(location, messages, "must hold text to be translated", hint))
        yield Original(location, prompt, answer)
