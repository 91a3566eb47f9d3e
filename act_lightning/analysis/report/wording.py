"""Numbers in sentences."""

from __future__ import annotations

from collections.abc import Iterable


def percent(share: float) -> str:
    """A share in % with three digits at most.

    >>> percent(0.253), percent(0.0466), percent(1.0), percent(0.00012)
    ('25.3 %', '4.66 %', '100 %', '0.012 %')
    """
    return f"{100 * share:.3g} %"


def percents(shares: Iterable[float]) -> str:
    """From the lowest share to the highest.

    >>> percents([0.038, 0.056]), percents([0.5])
    ('3.8–5.6 %', '50 %')
    """
    values = list(shares)
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low.removesuffix(' %')}–{high}"


def numbers(values: Iterable[float]) -> str:
    """From the lowest number to the highest.

    >>> numbers([0.7123, 0.8]), numbers([4.5]), numbers([17505, 940])
    ('0.712–0.8', '4.5', '940–17,505')
    """
    found = list(values)
    low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (min(found), max(found)))
    return low if low == high else f"{low}–{high}"


def counted(count: int, word: str, several: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "pair"), counted(2, "ability", "abilities")
    ('1 pair', '2 abilities')
    """
    return f"{count:,} {word if count == 1 else several or word + 's'}"
