"""What is to be translated: which rows go into which language, and what each of them is known by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import Conversation, iter_conversations
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.translation.instructions import Message, Texts, request
from act_lightning.translation.settings import TranslationSettings
from act_lightning.translation.verification import Protected, protect


@dataclass(frozen=True)
class Original:
    """One row.

    Attributes:
        place: Where it stands, such as ``math.jsonl:3``.
        prompt: Its question.
        answer: Its answer.
    """

    place: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Assignment:
    """One row that is to be translated into one language.

    Attributes:
        original: The row.
        ability: Name of its ability.
        language: Code of the language.
        settings: Section ``translate``.
    """

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
        """Who translates it."""
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
        """The request."""
        return request(Texts(prompt=self.prompt.text, answer=self.answer.text), self.language)

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that decides the reply: model, temperature, and all that it is told."""
        asked = [self.model, self.settings.temperature, self.settings.json_mode, self.messages]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()


def assignments(abilities: Mapping[str, AbilityData], settings: TranslationSettings) -> list[Assignment]:
    """Everything that is to be translated, ability by ability, language by language.

    Args:
        abilities: Section ``data.abilities``.
        settings: Section ``translate``.

    Raises:
        ActError: If rows cannot be read, are not one question and one answer, or are too few for all languages.
    """
    found = []
    for name in settings.abilities or abilities:
        shares = _shares(name, abilities[name], settings)
        for language in settings.only or settings.languages:
            found += [Assignment(original, name, language, settings) for original in shares[language]]
    return found


def _shares(name: str, data: AbilityData, settings: TranslationSettings) -> dict[str, list[Original]]:
    if name not in settings.distinct:
        rows = list(_originals(name, data))
        return dict.fromkeys(settings.languages, rows)
    size = data.limit or 0
    rows = list(islice(_distinct(name, data, size), size * (len(settings.languages) + 1)))
    needed = size * (settings.languages.index(_last(settings)) + 2)
    if len(rows) < needed:
        problem = f"must have {needed:,} different prompts for {size:,} to each language, but has {len(rows):,}"
        hint = "Lower limit, drop a language, or take the ability out of translate.distinct."
        raise ActError(ConfigIssue(f"data.abilities.{name}", data.path, problem, hint))
    return {code: rows[size * place :][:size] for place, code in enumerate(settings.languages, start=1)}


def _last(settings: TranslationSettings) -> str:
    """The last language in order that has work."""
    return max(settings.only or settings.languages, key=settings.languages.index)


def _distinct(name: str, data: AbilityData, size: int) -> Iterator[Original]:
    """The ability's own rows, then further ones whose prompt none before them had.

    Sets such as MetaMathQA hold a question many times with other answers: rows alone would not be distinct samples.
    """
    seen: set[bytes] = set()
    for number, original in enumerate(_originals(name, replace(data, limit=None))):
        prompt = hashlib.sha256(" ".join(original.prompt.split()).casefold().encode()).digest()
        if number < size or prompt not in seen:
            yield original
        seen.add(prompt)


def _originals(name: str, data: AbilityData) -> Iterator[Original]:
    for place, messages in iter_conversations(data, f"data.abilities.{name}"):
        yield Original(place, *_exchange(messages, place))


def _exchange(messages: Conversation, place: str) -> tuple[str, str]:
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"]:
        problem = "must be one question and one answer to be translated"
        raise ActError(ConfigIssue(place, roles, problem, "Leave the row out with filter."))
    prompt, answer = (message["content"] for message in messages)
    if not (prompt.strip() and answer.strip()):
        raise ActError(
            ConfigIssue(place, messages, "must hold text to be translated", "Leave the row out with filter.")
        )
    return prompt, answer
