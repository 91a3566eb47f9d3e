"""The limits of an endpoint, by a clock that only sleeping moves."""

from __future__ import annotations

import asyncio

import pytest

from act_lightning.translation.endpoint import RateLimiter


class Clock:
    """Seconds that pass while someone sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def starts(requests: int, tokens: int, expected: list[int], taken: list[int] | None = None) -> list[float]:
    """When requests start that follow each other at once, and that take what they take."""
    clock = Clock()
    limiter, found = RateLimiter(requests, tokens, clock, clock.sleep), []

    async def go() -> None:
        for number, guess in enumerate(expected):
            await limiter.wait(guess)
            found.append(round(clock.now - 100.0, 6))
            if taken:
                limiter.settle(guess, taken[number])

    asyncio.run(go())
    return found


def test_requests_per_minute() -> None:
    assert starts(60, 10**9, [1] * 4) == pytest.approx([0, 1, 2, 3], abs=1e-4)


def test_tokens_per_minute_as_expected_and_as_taken() -> None:
    assert starts(10**9, 6000, [100, 300, 100]) == pytest.approx([0, 1, 4], abs=1e-4)
    assert starts(10**9, 6000, [100, 300, 100], [500, 100, 0]) == pytest.approx([0, 5, 6], abs=1e-4)


def test_an_endpoint_that_asks_for_a_pause_gets_it() -> None:
    clock = Clock()
    limiter = RateLimiter(60, 10**9, clock, clock.sleep)
    limiter.pause(20.0)
    limiter.pause(5.0)  # a shorter one ends no longer one
    asyncio.run(limiter.wait(1))
    assert clock.now == 120.0
