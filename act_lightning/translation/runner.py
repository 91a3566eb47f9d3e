"""Translating: many rows at a time, each until a reply keeps what it must or enough were paid for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from act_lightning.errors import ActError, ConfigIssue
from act_lightning.translation.endpoint import Endpoint, NoReplyError
from act_lightning.translation.instructions import Message, Texts, UnreadableReplyError, correction, read_reply
from act_lightning.translation.journal import Entry, Journal
from act_lightning.translation.settings import TranslationSettings
from act_lightning.translation.verification import broken_rules
from act_lightning.translation.work import Assignment

_STOPPED = {"length": "it was cut at the model's longest output", "content_filter": "the endpoint filtered it"}


@dataclass(frozen=True)
class Outcome:
    """What became of one row in one language.

    Attributes:
        texts: The translation; ``None`` if there is none.
        reasons: Why there is none.
        final: Whether the next run would come to the same; otherwise it asks again.
    """

    texts: Texts | None
    reasons: tuple[str, ...] = ()
    final: bool = True


@dataclass(frozen=True)
class Effort:
    """What a run did.

    Attributes:
        outcomes: What became of every question, by its key.
        requests: Number of requests that were sent.
        retries: Number of those that were sent again, for the endpoint had stumbled.
        stopped: Why the run ended before everything was asked, if it did.
    """

    outcomes: dict[str, Outcome]
    requests: int
    retries: int
    stopped: ActError | None = None


def check_reply(assignment: Assignment, entry: Entry) -> tuple[Texts | None, list[str]]:
    """The translation in a reply, or what is wrong with it.

    Args:
        assignment: What was asked.
        entry: The reply.
    """
    if entry.finish in _STOPPED:
        return None, [_STOPPED[entry.finish]]
    try:
        texts = read_reply(entry.text)
    except UnreadableReplyError as error:
        return None, [str(error)]
    parts = (("prompt", assignment.prompt, texts["prompt"]), ("answer", assignment.answer, texts["answer"]))
    issues = [
        f"{name}: {issue}"
        for name, source, translated in parts
        for issue in broken_rules(source, translated, assignment.language)
    ]
    if issues:
        return None, issues
    restore = assignment.prompt.restore, assignment.answer.restore
    return Texts(prompt=restore[0](texts["prompt"]), answer=restore[1](texts["answer"])), []


def run(work: Sequence[Assignment], settings: TranslationSettings, ledger: Journal) -> Effort:
    """Ask for everything that no reply in the ledger answers.

    Args:
        work: What is to be translated; what is the same is asked once.
        settings: Section ``translate``.
        ledger: Replies of earlier runs; those of this run are added.
    """
    return asyncio.run(_Crew({one.key: one for one in work}.values(), settings, ledger).work())


class _Crew:
    """Workers that take one question after another.

    Args:
        questions: Without repeats.
        settings: Section ``translate``.
        ledger: Where replies are kept.
    """

    def __init__(self, questions: Iterable[Assignment], settings: TranslationSettings, ledger: Journal) -> None:
        self._settings = settings
        self._ledger = ledger
        self._outcomes: dict[str, Outcome] = {}
        self._waiting: Iterator[Assignment] = iter(list(questions))
        self._bar = tqdm(questions, desc="translating", unit="row")
        self._stopped: ActError | None = None
        self._failures = 0

    async def work(self) -> Effort:
        """Answer every question, or stop when the endpoint answers none."""
        with self._bar:
            async with Endpoint(self._settings) as self._endpoint:
                await asyncio.gather(*(self._worker() for _ in range(self._settings.concurrency)))
        return Effort(self._outcomes, self._endpoint.requests, self._endpoint.retries, self._stopped)

    async def _worker(self) -> None:
        for question in self._waiting:
            try:
                outcome = await self._answer(question)
            except ActError as error:  # all others finish what is under way, for it is paid for
                self._stopped = self._stopped or error
            else:
                self._outcomes[question.key] = outcome
                self._bar.update()
            if self._stopped:
                return

    async def _answer(self, question: Assignment) -> Outcome:
        """Replies of earlier runs count as attempts."""
        messages, issues = question.messages, list[str]()
        known = self._ledger.of(question.key)
        for attempt in range(max(self._settings.attempts, len(known))):
            if attempt < len(known):
                entry = known[attempt]
            else:
                try:
                    entry = await self._ask(question, messages)
                except NoReplyError as error:
                    return self._without_reply(error)
            texts, issues = check_reply(question, entry)
            if texts:
                return Outcome(texts)
            messages = question.messages + correction(entry.text, issues)
        return Outcome(None, tuple(issues))

    async def _ask(self, question: Assignment, messages: Sequence[Message]) -> Entry:
        reply = await self._endpoint.ask(question.model, messages)
        self._failures = 0
        entry = Entry(question.key, question.model, reply.text, reply.finish, reply.input_tokens, reply.output_tokens)
        self._ledger.add(entry)
        return entry

    def _without_reply(self, error: NoReplyError) -> Outcome:
        self._failures += 1
        if self._failures > self._settings.concurrency:
            problem = f"has not answered the last {self._failures} questions: {error}"
            hint = "Look after it; what is paid for is kept, and the next run goes on from there."
            self._stopped = ActError(ConfigIssue("translate.base_url", self._settings.base_url, problem, hint))
        return Outcome(None, (str(error),), final=error.refused)
