"""How fast requests may follow each other."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from act_lightning.errors import ActError, ConfigIssue
from act_lightning.translation.instructions import Message
from act_lightning.translation.settings import TranslationSettings

if TYPE_CHECKING:
    import openai


_MINUTE = 60.0


class RateLimiter:
    """Spreads requests evenly, so that neither limit of an endpoint is reached.

    A request may start as soon as the shares of the minute that earlier ones took have passed:
    ``60 / requests_per_minute`` seconds and ``60 · tokens / tokens_per_minute`` seconds, whichever ends later.

    Args:
        requests_per_minute: Requests that may start in a minute.
        tokens_per_minute: Tokens that may be sent and received in a minute.
        clock: The time in seconds.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        requests_per_minute: int,
        tokens_per_minute: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._request_seconds = _MINUTE / requests_per_minute
        self._token_seconds = _MINUTE / tokens_per_minute
        self._clock = clock
        self._sleep = sleep
        self._requests_free = self._tokens_free = self._held_until = clock()

    async def wait(self, tokens: int) -> None:
        """Return when one more request may start.

        Args:
            tokens: What it is expected to take.
        """
        start = max(self._clock(), self._requests_free, self._tokens_free)
        self._requests_free = start + self._request_seconds
        self._tokens_free = start + tokens * self._token_seconds
        while (ahead := max(start, self._held_until) - self._clock()) > 0:
            await self._sleep(ahead)

    def settle(self, expected: int, taken: int) -> None:
        """Correct what was expected of a request by what it took.

        Args:
            expected: What :meth:`wait` was told.
            taken: The tokens that were sent and received.
        """
        self._tokens_free += (taken - expected) * self._token_seconds

    def hold(self, seconds: float) -> None:
        """Start nothing for a while, as an endpoint has asked.

        Args:
            seconds: How long.
        """
        self._held_until = max(self._held_until, self._clock() + seconds)


_LONGEST_PAUSE = 60.0
_CHARACTERS_PER_TOKEN = 3  # for a first estimate, on the safe side for English; usage corrects it
_OF_THE_ACCOUNT = {
    401: "refuses the key",
    403: "refuses access",
    404: "knows no such model or address",
}
_EXHAUSTED = "insufficient_quota"
_PASSING = (408, 409, 425, 429)
_SERVER_ERROR = 500
_LONGEST_WAIT = 600.0
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Reply:
    """What came back and was paid for.

    Attributes:
        text: The text.
        finish: Why it ends: ``stop``, ``length``, ``content_filter``, ….
        input_tokens: Tokens that were sent.
        output_tokens: Tokens that came back.
    """

    text: str
    finish: str
    input_tokens: int
    output_tokens: int


class NoReplyError(Exception):
    """No reply to one request: the endpoint refuses it, or stumbled too often.

    Args:
        reason: What it said last.
        refused: Whether asking again is of no use.
    """

    def __init__(self, reason: str, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


class Endpoint:
    """Asks for chat completions.

    Args:
        settings: Section ``translate``.

    Attributes:
        requests: Number of requests that were sent.
        retries: Number of those that were sent again, for the endpoint had stumbled.
    """

    def __init__(self, settings: TranslationSettings) -> None:
        import openai  # here, because it is an optional package

        self._settings = settings
        self._secret = settings.secret()
        self._pace = RateLimiter(settings.requests_per_minute, settings.tokens_per_minute)
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none", base_url=settings.base_url, timeout=settings.timeout, max_retries=0
        )
        self._options: dict[str, Any] = {}
        if settings.temperature is not None:
            self._options["temperature"] = settings.temperature
        if settings.json_mode:
            self._options["response_format"] = {"type": "json_object"}
        self.requests = self.retries = 0

    async def __aenter__(self) -> Endpoint:
        """The endpoint itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self._client.close()

    async def ask(self, model: str, messages: Sequence[Message]) -> Reply:
        """The reply to a conversation.

        Args:
            model: Name of the model.
            messages: Messages with ``role`` and ``content``.

        Raises:
            NoReplyError: If the endpoint refuses this request, or stumbled too often.
            ActError: If it refuses every request: the key, the model, the address, or the account.
        """
        reason = ""
        for sent in range(self._settings.retries + 1):
            try:
                return await self._ask_once(model, messages)
            except _StumbleError as stumble:
                reason = str(stumble)
                self._pace.hold(stumble.wait)  # for every request: the endpoint is not alone with this one
            if sent < self._settings.retries:
                self.retries += 1
                await asyncio.sleep(min(2.0**sent, _LONGEST_PAUSE) * random.uniform(0.25, 0.5))
        raise NoReplyError(f"{reason} ({self._settings.retries + 1} times)", refused=False)

    async def _ask_once(self, model: str, messages: Sequence[Message]) -> Reply:
        import openai

        told: Any = list(messages)
        expected = 2 * sum(len(message["content"]) for message in messages) // _CHARACTERS_PER_TOKEN
        await self._pace.wait(expected)
        self.requests += 1
        try:
            async with asyncio.timeout(self._settings.timeout):  # of the whole: a server that trickles keeps us, too
                answered = await self._client.chat.completions.with_raw_response.create(
                    model=model, messages=told, **self._options
                )
            reply = _read(answered.text)
        except openai.APIStatusError as error:
            raise self._judged(error, model) from error
        except (openai.APIConnectionError, TimeoutError) as error:
            raise _StumbleError(self._shown(str(error) or "no whole reply in time")) from error
        except (ValueError, LookupError, TypeError) as error:
            raise _StumbleError("the endpoint's reply is no chat completion") from error
        self._pace.settle(expected, reply.input_tokens + reply.output_tokens)
        return reply

    def _judged(self, error: openai.APIStatusError, model: str) -> Exception:
        """What a refusal means: for everything, for this request, or for this moment."""
        status, said = error.status_code, self._shown(error.message)
        if (what := _OF_THE_ACCOUNT.get(status)) or error.code == _EXHAUSTED:
            address = str(self._client.base_url)
            hint = "Correct key, model or address; what is paid for is kept, and the next run goes on from there."
            problem = f"{what or 'has no money left'}, asked for model {model} ({status}: {said})"
            return ActError(ConfigIssue("translate.base_url", address, problem, hint))
        if status in _PASSING or status >= _SERVER_ERROR:
            return _StumbleError(f"status {status}: {said}", _retry_after(error.response.headers.get("retry-after")))
        return NoReplyError(f"status {status}: {said}", refused=True)

    def _shown(self, text: str) -> str:
        """A message of the endpoint, in which the key may not appear."""
        return (text.replace(self._secret, "***") if self._secret else text)[:_LONGEST_MESSAGE]


class _StumbleError(Exception):
    """The endpoint failed for the moment.

    Args:
        reason: What happened.
        wait: Seconds that it asks for.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _read(body: str) -> Reply:
    """A chat completion; what is missing or of another kind raises a ValueError, LookupError or TypeError."""
    completion = json.loads(body)
    choice, usage = completion["choices"][0], completion.get("usage") or {}
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("no text")
    tokens = [int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")]
    return Reply(text, str(choice.get("finish_reason")), *tokens)


def _retry_after(header: str | None) -> float:
    """Seconds; 0 where the header is absent or a date, which few send."""
    try:
        return min(max(float(header or 0), 0.0), _LONGEST_WAIT)
    except ValueError:
        return 0.0
