"""How fast requests may follow each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

_MINUTE = 60.0


class Pace:
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
