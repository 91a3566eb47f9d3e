"""Translates many rows at a time, and keeps every reply that was paid for in a journal on disk."""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from act_lightning.checkpoints.lock import lock_root
from act_lightning.console import progress_bar
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.translation.assignments import Assignment, Texts, UnreadableReplyError, correction, read_reply
from act_lightning.translation.endpoint import Endpoint, NoReplyError
from act_lightning.translation.translation_settings import TranslationSettings
from act_lightning.translation.verification import broken_rules

_UNFINISHED = {"length": "it was cut at the model's longest output", "content_filter": "the endpoint filtered it"}


@dataclass(frozen=True)
class Entry:
    """A reply that was paid for, with marks in its text, by the fingerprint of the model and everything it was told."""

    key: str
    model: str
    text: str
    finish: str
    input_tokens: int
    output_tokens: int


class Journal:
    """An append-only file of one JSON object a line; each line is on the disk when :meth:`add` returns.

    A run after a kill finds every reply that was paid for, and pays for none twice.

    Raises:
        ActError: On entering, if another process writes to its folder, or a line other than the last is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        self._lock = ExitStack()
        self._file = -1

    def __enter__(self) -> Journal:
        """Lock its folder and read the file; a last line without an end, which a killed run left, is cut off."""
        self._lock.enter_context(lock_root(self.path.parent, "data translate", "translate.out"))
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            content = self.path.read_bytes()
            complete = content.rfind(b"\n") + 1
            if complete < len(content):
                os.ftruncate(self._file, complete)
            for number, line in enumerate(content[:complete].splitlines(), start=1):
                try:
                    entry = Entry(**json.loads(line))
                except (ValueError, TypeError) as error:
                    value, problem = line.decode(errors="replace"), f"is no entry of a journal ({error})"
                    raise ActError(ConfigIssue(f"{self.path}:{number}", value, problem, "Delete the line.")) from error
                self._entries[entry.key].append(entry)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file, and unlock its folder."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.close()

    def replies(self, key: str) -> list[Entry]:
        """The replies to one question, oldest first."""
        return list(self._entries.get(key, ()))

    def add(self, entry: Entry) -> None:
        """Write a reply to the disk.

        Raises:
            ActError: The file cannot be written.
        """
        data = (json.dumps(asdict(entry), ensure_ascii=False) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            problem = f"cannot be written ({error})"
            hint = "Free some space, and run again: the file's entries are kept."
            raise ActError(ConfigIssue("translate.out", str(self.path), problem, hint)) from error
        self._entries[entry.key].append(entry)


@dataclass(frozen=True)
class Outcome:
    """The translation of one row, or the reasons why there is none.

    ``final`` says whether the next run would get the same result; otherwise it asks again.
    """

    texts: Texts | None
    reasons: tuple[str, ...] = ()
    final: bool = True


@dataclass(frozen=True)
class RunResult:
    """The outcome of every question by its key, the number of requests, and why the run ended early, if it did.

    ``retries`` counts the requests that were sent again after a temporary failure of the endpoint.
    """

    outcomes: dict[str, Outcome]
    requests: int
    retries: int
    stopped: ActError | None = None


def run(work: Sequence[Assignment], settings: TranslationSettings, journal: Journal) -> RunResult:
    """Ask, equal questions once, for everything that no reply in the journal answers, and add the replies to it."""
    return asyncio.run(_Workers(work, settings, journal).run())


class _Workers:
    """Workers that take one question after another."""

    def __init__(self, work: Sequence[Assignment], settings: TranslationSettings, journal: Journal) -> None:
        questions = list({assignment.key: assignment for assignment in work}.values())
        self._settings = settings
        self._journal = journal
        self._outcomes: dict[str, Outcome] = {}
        self._pending = iter(questions)
        self._bar = progress_bar(questions, desc="translating", unit="row")
        self._stopped: ActError | None = None
        self._failures = 0

    async def run(self) -> RunResult:
        """Answer every question, or stop when the endpoint answers none."""
        with self._bar:
            async with aclosing(Endpoint(self._settings)) as self._endpoint:
                await asyncio.gather(*(self._work() for _ in range(self._settings.concurrency)))
        return RunResult(self._outcomes, self._endpoint.requests, self._endpoint.retries, self._stopped)

    async def _work(self) -> None:
        for question in self._pending:
            try:
                self._outcomes[question.key] = await self._translate(question)
                self._bar.update()
            except ActError as error:  # the other workers finish what is under way, for it is paid for
                self._stopped = self._stopped or error
            if self._stopped:
                return

    async def _translate(self, question: Assignment) -> Outcome:
        """Ask until a reply can be used; replies of earlier runs count as attempts."""
        messages, issues = question.messages, list[str]()
        earlier = self._journal.replies(question.key)
        for attempt in range(max(self._settings.attempts, len(earlier))):
            if attempt < len(earlier):
                entry = earlier[attempt]
            else:
                try:
                    reply = await self._endpoint.ask(question.model, messages)
                except NoReplyError as error:
                    self._count_failure(error)
                    return Outcome(None, (str(error),), final=error.refused)
                self._failures = 0
                entry = Entry(question.key, question.model, **asdict(reply))
                self._journal.add(entry)
            texts, issues = _check_reply(question, entry)
            if texts:
                return Outcome(texts)
            messages = question.messages + correction(entry.text, issues)
        return Outcome(None, tuple(issues))

    def _count_failure(self, error: NoReplyError) -> None:
        """Stop the run if the endpoint has failed once for each worker, and once more."""
        self._failures += 1
        if self._failures > self._settings.concurrency:
            problem = f"has not answered the last {self._failures} questions: {error}"
            hint = "Look after it; what is paid for is kept, and the next run goes on from there."
            self._stopped = ActError(ConfigIssue("translate.base_url", self._settings.base_url, problem, hint))


def _check_reply(assignment: Assignment, entry: Entry) -> tuple[Texts | None, list[str]]:
    """The translation in a reply, or what is wrong with it."""
    if entry.finish in _UNFINISHED:
        return None, [_UNFINISHED[entry.finish]]
    try:
        texts = read_reply(entry.text)
    except UnreadableReplyError as error:
        return None, [str(error)]
    prompt, answer, language = assignment.prompt, assignment.answer, assignment.language
    issues = [f"prompt: {issue}" for issue in broken_rules(prompt, texts["prompt"], language)]
    issues += [f"answer: {issue}" for issue in broken_rules(answer, texts["answer"], language)]
    if issues:
        return None, issues
    return Texts(prompt=prompt.restore(texts["prompt"]), answer=answer.restore(texts["answer"])), []
