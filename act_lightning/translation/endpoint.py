"""An OpenAI-compatible endpoint, and the rate at which requests may be sent to it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from act_lightning.errors import ActError, ConfigIssue
from act_lightning.translation.assignments import Message
from act_lightning.translation.translation_settings import TranslationSettings

if TYPE_CHECKING:
    import openai

_MINUTE = 60.0
_LONGEST_PAUSE = 60.0
_CHARACTERS_PER_TOKEN = 3  # for a first estimate, on the safe side for English; usage corrects it
_ACCOUNT_ERRORS = {401: "refuses the key", 403: "refuses access", 404: "knows no such model or address"}
_EXHAUSTED = "insufficient_quota"
_TEMPORARY = (408, 409, 425, 429)
_SERVER_ERROR = 500
_LONGEST_WAIT = 600.0
_LONGEST_MESSAGE = 300


class RateLimiter:
    """Spreads requests evenly, so that neither limit of an endpoint is reached.

    A request may start when the shares of the minute that earlier ones took have passed:
    ``60 / requests_per_minute`` seconds and ``60 · tokens / tokens_per_minute`` seconds, whichever ends later.
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
        self._requests_free = self._tokens_free = self._paused_until = clock()

    async def wait(self, tokens: int) -> None:
        """Return when another request, which is expected to take ``tokens``, may start."""
        start = max(self._clock(), self._requests_free, self._tokens_free)
        self._requests_free = start + self._request_seconds
        self._tokens_free = start + tokens * self._token_seconds
        while (seconds := max(start, self._paused_until) - self._clock()) > 0:
            await self._sleep(seconds)

    def settle(self, expected: int, actual: int) -> None:
        """Replace the tokens that :meth:`wait` expected of a request by those that were sent and received."""
        self._tokens_free += (actual - expected) * self._token_seconds

    def pause(self, seconds: float) -> None:
        """Start nothing for a while, at the endpoint's request."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)


@dataclass(frozen=True)
class Reply:
    """A reply that was paid for, and the reason for its end: ``stop``, ``length``, ``content_filter``, …."""

    text: str
    finish: str
    input_tokens: int
    output_tokens: int


class NoReplyError(Exception):
    """No reply to one request: the endpoint failed too often, or ``refused`` it, so that asking again is of no use."""

    def __init__(self, reason: str, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


class _TemporaryError(Exception):
    """The endpoint failed for the moment, and asks to wait for some seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint:
    """Asks for chat completions; counts the requests that were sent, and those sent again after a temporary failure."""

    def __init__(self, settings: TranslationSettings) -> None:
        import openai  # here, because it is an optional package

        self._settings = settings
        self._secret = settings.secret()
        self._limiter = RateLimiter(settings.requests_per_minute, settings.tokens_per_minute)
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none", base_url=settings.base_url, timeout=settings.timeout, max_retries=0
        )
        self._options: dict[str, Any] = {}
        if settings.temperature is not None:
            self._options["temperature"] = settings.temperature
        if settings.json_mode:
            self._options["response_format"] = {"type": "json_object"}
        self.requests = self.retries = 0

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def ask(self, model: str, messages: Sequence[Message]) -> Reply:
        """The reply to a conversation.

        Raises:
            NoReplyError: The endpoint refuses this request, or failed too often.
            ActError: It refuses every request: the key, the model, the address, or the account.
        """
        reason = ""
        for attempt in range(self._settings.retries + 1):
            try:
                return await self._ask_once(model, messages)
            except _TemporaryError as error:
                reason = str(error)
                self._limiter.pause(error.wait)  # for every request: the endpoint serves others, too
            if attempt < self._settings.retries:
                self.retries += 1
                await asyncio.sleep(min(2.0**attempt, _LONGEST_PAUSE) * random.uniform(0.25, 0.5))
        raise NoReplyError(f"{reason} ({self._settings.retries + 1} times)", refused=False)

    async def _ask_once(self, model: str, messages: Sequence[Message]) -> Reply:
        import openai

        content: Any = list(messages)
        expected = 2 * sum(len(message["content"]) for message in messages) // _CHARACTERS_PER_TOKEN
        await self._limiter.wait(expected)
        self.requests += 1
        try:
            async with asyncio.timeout(self._settings.timeout):  # in total: a server that trickles keeps us, too
                response = await self._client.chat.completions.with_raw_response.create(
                    model=model, messages=content, **self._options
                )
            reply = _read_completion(response.text)
        except openai.APIStatusError as error:
            raise self._status_error(error, model) from error
        except (openai.APIConnectionError, TimeoutError) as error:
            raise _TemporaryError(self._redacted(str(error) or "no whole reply in time")) from error
        except (ValueError, LookupError, TypeError) as error:
            raise _TemporaryError("the endpoint's reply is no chat completion") from error
        self._limiter.settle(expected, reply.input_tokens + reply.output_tokens)
        return reply

    def _status_error(self, error: openai.APIStatusError, model: str) -> Exception:
        """Whether a status refuses everything, this request, or fails only for the moment."""
        status, message = error.status_code, self._redacted(error.message)
        if (refusal := _ACCOUNT_ERRORS.get(status)) or error.code == _EXHAUSTED:
            address = str(self._client.base_url)
            hint = "Correct key, model or address; what is paid for is kept, and the next run goes on from there."
            problem = f"{refusal or 'has no money left'}, asked for model {model} ({status}: {message})"
            return ActError(ConfigIssue("translate.base_url", address, problem, hint))
        if status in _TEMPORARY or status >= _SERVER_ERROR:
            wait = _retry_after(error.response.headers.get("retry-after"))
            return _TemporaryError(f"status {status}: {message}", wait)
        return NoReplyError(f"status {status}: {message}", refused=True)

    def _redacted(self, text: str) -> str:
        """A message of the endpoint, shortened and without the key."""
        return (text.replace(self._secret, "***") if self._secret else text)[:_LONGEST_MESSAGE]


def _read_completion(body: str) -> Reply:
    """A chat completion; a part that is missing or malformed raises a ValueError, LookupError or TypeError."""
    completion = json.loads(body)
    choice, usage = completion["choices"][0], completion.get("usage") or {}
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("no text")
    tokens = [int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")]
    return Reply(text, str(choice.get("finish_reason")), *tokens)


def _retry_after(header: str | None) -> float:
    """Seconds to wait; 0 if the header is absent or a date, which few send."""
    try:
        return min(max(float(header or 0), 0.0), _LONGEST_WAIT)
    except ValueError:
        return 0.0
