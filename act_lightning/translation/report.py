"""What a translation cost and what became of the rows: as figures, on the terminal, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from act_lightning.translation.journal import Entry, Journal
from act_lightning.translation.runner import Effort, Outcome
from act_lightning.translation.settings import Price
from act_lightning.translation.work import Assignment

_MILLION = 1e6


@dataclass(frozen=True)
class SetReport:
    """One ability in one language.

    Attributes:
        model: Who translated it.
        rows: Rows that were to be translated.
        translated: Rows that were.
        set_aside: Rows of which no reply kept what it must, or that the endpoint refuses.
        unanswered: Rows that the endpoint did not answer; the next run asks again.
        attempts: Replies that were paid for, those of earlier runs included.
        corrected: Rows that took more than one reply.
        input_tokens: Tokens that were sent, in all attempts.
        output_tokens: Tokens that came back, in all attempts.
        cost: US dollars for them; ``None`` if the model has no price.
    """

    model: str
    rows: int
    translated: int
    set_aside: int
    unanswered: int
    attempts: int
    corrected: int
    input_tokens: int
    output_tokens: int
    cost: float | None


@dataclass(frozen=True)
class TranslationReport:
    """A whole translation.

    Attributes:
        sets: Figures by name, ``<ability>-<language>``.
        reasons: How often each reason kept a row from being translated.
        requests: Requests that this run sent.
        retries: Those of them that were sent again, for the endpoint had stumbled.
    """

    sets: dict[str, SetReport]
    reasons: dict[str, int]
    requests: int
    retries: int

    @property
    def unanswered(self) -> int:
        """Rows that the next run asks for again."""
        return sum(one.unanswered for one in self.sets.values())

    @property
    def cost(self) -> float | None:
        """US dollars for everything, earlier runs included; ``None`` if a model has no price."""
        costs = [one.cost for one in self.sets.values()]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists, strings and numbers."""
        return asdict(self) | {"cost": self.cost, "unanswered": self.unanswered}


def make_report(
    sets: Mapping[str, Sequence[Assignment]], effort: Effort, ledger: Journal, prices: Mapping[str, Price]
) -> TranslationReport:
    """The figures of a translation.

    Args:
        sets: What was to be translated, by name.
        effort: What was done.
        ledger: What was paid for.
        prices: Prices by model.
    """
    reports = {name: _set_report(work, effort.outcomes, ledger, prices) for name, work in sets.items()}
    failed = (effort.outcomes.get(one.key) for work in sets.values() for one in work)
    reasons = Counter(reason for outcome in failed if outcome for reason in outcome.reasons)
    return TranslationReport(reports, dict(reasons.most_common()), effort.requests, effort.retries)


def _set_report(
    work: Sequence[Assignment], outcomes: Mapping[str, Outcome], ledger: Journal, prices: Mapping[str, Price]
) -> SetReport:
    paid = {one.key: ledger.of(one.key) for one in work}
    found = [outcomes.get(one.key) for one in work]
    entries = [entry for replies in paid.values() for entry in replies]
    translated = sum(outcome is not None and outcome.texts is not None for outcome in found)
    unanswered = sum(outcome is None or not outcome.final for outcome in found)
    return SetReport(
        model=work[0].model,
        rows=len(work),
        translated=translated,
        set_aside=len(work) - translated - unanswered,
        unanswered=unanswered,
        attempts=len(entries),
        corrected=sum(len(replies) > 1 for replies in paid.values()),
        input_tokens=sum(entry.input_tokens for entry in entries),
        output_tokens=sum(entry.output_tokens for entry in entries),
        cost=_cost(entries, prices.get(work[0].model)),
    )


def _cost(entries: Sequence[Entry], price: Price | None) -> float | None:
    if price is None:
        return None
    return sum(entry.input_tokens * price.input + entry.output_tokens * price.output for entry in entries) / _MILLION


def print_report(report: TranslationReport, console: Console) -> None:
    """Print a report as a table.

    Args:
        report: What to print.
        console: Where to print.
    """
    columns = ("set", "model", "rows", "done", "set aside", "open", "replies", "tokens in", "tokens out")
    table = Table(*columns, "US$", box=None)
    for name, one in report.sets.items():
        counts = (one.rows, one.translated, one.set_aside, one.unanswered, one.attempts)
        tokens = (one.input_tokens, one.output_tokens)
        table.add_row(name, one.model, *(f"{number:,}" for number in (*counts, *tokens)), _dollars(one.cost))
    console.print(table)
    console.print(f"{report.requests:,} requests now, {report.retries:,} of them sent again", end="; ")
    console.print(f"cost of everything, earlier runs included: {_dollars(report.cost)} US$")
    for reason, times in report.reasons.items():
        console.print(f"{times:,} ×  {reason}", markup=False)


def _dollars(cost: float | None) -> str:
    return "unknown: no price" if cost is None else f"{cost:,.4f}"
