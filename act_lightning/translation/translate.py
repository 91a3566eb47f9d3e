"""From abilities to translated Parquet files, with a report of what they cost and which rows are missing."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from act_lightning.checkpoints.files import write_file
from act_lightning.console import Console, Table
from act_lightning.data.ability_data import AbilityData
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.translation.assignments import Assignment, assignments
from act_lightning.translation.runner import Journal, Outcome, RunResult, run
from act_lightning.translation.translation_settings import Price, TranslationSettings, translation_issues

_MILLION = 1e6


@dataclass(frozen=True)
class SetReport:
    """One ability in one language.

    Attributes:
        set_aside: Rows without a usable reply, or refused by the endpoint.
        unanswered: Rows that the endpoint did not answer; the next run asks again.
        attempts: Replies that were paid for, those of earlier runs included; their tokens are counted.
        corrected: Rows that took more than one reply.
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
    """Figures of a whole translation by set (``<ability>-<language>``), and how often each reason kept a row from it.

    ``requests`` are those of this run; ``retries`` were sent again after a temporary failure of the endpoint.
    """

    sets: dict[str, SetReport]
    reasons: dict[str, int]
    requests: int
    retries: int

    @property
    def unanswered(self) -> int:
        """Rows that the next run asks for again."""
        return sum(figures.unanswered for figures in self.sets.values())

    @property
    def cost(self) -> float | None:
        """US dollars for everything, earlier runs included; ``None`` if a model has no price."""
        costs = [figures.cost for figures in self.sets.values()]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists, strings and numbers, with total ``cost`` and ``unanswered``."""
        return asdict(self) | {"cost": self.cost, "unanswered": self.unanswered}


def translate(abilities: Mapping[str, AbilityData], settings: TranslationSettings) -> TranslationReport:
    """Translate abilities, and write the results under ``translate.out``.

    ``<ability>-<language>.parquet`` is written when each of its rows is either translated or set aside;
    ``ledger.jsonl`` holds every reply that was paid for, ``set_aside.jsonl`` the rows without a translation with the
    reasons, ``report.json`` the figures. A run after a kill, a failure or a change of other rows asks only for what the
    ledger does not answer.

    Raises:
        ActError: Settings are wrong, rows cannot be read, another run writes the same ledger, the endpoint refuses
            everything (after all files that can be were written), or an ability keeps no row at all.
    """
    raise_if_any(translation_issues(settings, abilities))
    work = assignments(abilities, settings)
    sets: dict[str, list[Assignment]] = defaultdict(list)
    for assignment in work:
        sets[assignment.name].append(assignment)
    out = Path(settings.out)
    with Journal(out / "ledger.jsonl") as journal:
        result = run(work, settings, journal)
        report = _make_report(sets, result, journal, settings.prices)
        for name, figures in report.sets.items():
            if figures.translated and not figures.unanswered:
                _write_translation(out / f"{name}.parquet", sets[name], result.outcomes)
        _write_set_aside(out / "set_aside.jsonl", work, result.outcomes)
        write_file(out / "report.json", json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    if result.stopped:
        raise result.stopped
    problem = "must keep a row, but all are set aside"
    hint = "Read the reasons in set_aside.jsonl; another model may do better."
    empty = [name for name, figures in report.sets.items() if figures.set_aside == figures.rows]
    raise_if_any(ConfigIssue("translate", name, problem, hint) for name in empty)
    return report


def _write_translation(path: Path, work: Sequence[Assignment], outcomes: Mapping[str, Outcome]) -> None:
    """Write the translated rows as Parquet, in the order of the originals.

    The columns ``prompt`` and ``answer`` are an ability's; ``original_prompt``, ``original_answer``, ``place``,
    ``language`` and ``model`` tell where they come from.
    """
    import pyarrow  # here, because most runs write no Parquet
    import pyarrow.parquet

    rows = [
        {
            **texts,
            "original_prompt": assignment.original.prompt,
            "original_answer": assignment.original.answer,
            "place": assignment.original.location,
            "language": assignment.language,
            "model": assignment.model,
        }
        for assignment in work
        if (texts := outcomes[assignment.key].texts)
    ]
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content)
    write_file(path, content.getvalue())


def _write_set_aside(path: Path, work: Sequence[Assignment], outcomes: Mapping[str, Outcome]) -> None:
    """Write the rows without a translation as JSONL, each with the reasons; the file is empty if there are none."""
    lines = []
    for assignment in work:
        outcome = outcomes.get(assignment.key)
        if outcome and outcome.texts is None:
            row = {
                "set": assignment.name,
                "place": assignment.original.location,
                "reasons": list(outcome.reasons),
                "prompt": assignment.original.prompt,
                "answer": assignment.original.answer,
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_file(path, "".join(lines))


def _make_report(
    sets: Mapping[str, Sequence[Assignment]], result: RunResult, journal: Journal, prices: Mapping[str, Price]
) -> TranslationReport:
    reports, reasons = {}, Counter[str]()
    for name, work in sets.items():
        outcomes = [result.outcomes.get(assignment.key) for assignment in work]
        reasons.update(reason for outcome in outcomes if outcome for reason in outcome.reasons)
        replies = {assignment.key: journal.replies(assignment.key) for assignment in work}
        entries = [entry for entries in replies.values() for entry in entries]
        translated = sum(outcome is not None and outcome.texts is not None for outcome in outcomes)
        unanswered = sum(outcome is None or not outcome.final for outcome in outcomes)
        cost = None
        if price := prices.get(work[0].model):
            cost = sum(entry.input_tokens * price.input + entry.output_tokens * price.output for entry in entries)
        reports[name] = SetReport(
            model=work[0].model,
            rows=len(work),
            translated=translated,
            set_aside=len(work) - translated - unanswered,
            unanswered=unanswered,
            attempts=len(entries),
            corrected=sum(len(entries) > 1 for entries in replies.values()),
            input_tokens=sum(entry.input_tokens for entry in entries),
            output_tokens=sum(entry.output_tokens for entry in entries),
            cost=None if cost is None else cost / _MILLION,
        )
    return TranslationReport(reports, dict(reasons.most_common()), result.requests, result.retries)


def print_report(report: TranslationReport, settings: TranslationSettings, console: Console) -> None:
    """Print a report as a table, and where everything is."""
    table = Table(
        *("set\nmodel", "rows", "done", "set\naside", "open", "replies", "tokens in\nand out", "US$"), box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, figures in report.sets.items():
        counts = (figures.rows, figures.translated, figures.set_aside, figures.unanswered, figures.attempts)
        tokens = f"{figures.input_tokens:,}\n{figures.output_tokens:,}"
        cost = _dollars(figures.cost)
        table.add_row(f"{name}\n{figures.model}", *(f"{number:,}" for number in counts), tokens, cost)
    console.print(table)
    console.print(f"{report.requests:,} requests now, {report.retries:,} of them sent again", end="; ")
    console.print(f"cost of everything, earlier runs included: {_dollars(report.cost)} US$", soft_wrap=True)
    for reason, times in report.reasons.items():
        console.print(f"{times:,} ×  {reason}", soft_wrap=True)
    console.print(f"translations, ledger and report written to {settings.out}", soft_wrap=True)


def _dollars(cost: float | None) -> str:
    return "no price" if cost is None else f"{cost:,.4f}"
