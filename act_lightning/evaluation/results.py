"""What an evaluation found: a record of every generation, and the shares on each set, as files and tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.intervals import mean_of_shares, wilson


@dataclass(frozen=True)
class Record:
    """One item of an evaluation set, answered and judged.

    Attributes:
        row: Its number in the set, from 0.
        id: What tells it from other items, the same in every run.
        prompt: What the model read.
        prediction: What it wrote.
        reference: The right answer; a choice's is a letter such as ``(B)``.
        extracted: The answer in the asked form; ``None`` where there is none.
        flexible: The answer wherever it may be; ``None`` where there is none.
        answered: Whether there is an answer in the asked form.
        correct: Whether ``extracted`` is right.
        flexible_correct: Whether ``flexible`` is right.
        tokens: Length of the output.
        truncated: Whether the output was cut before the model ended its turn.
        options: How many options there were; 0 where the answer is free.
        language: Language of the output, where the set names one and the output has words.
        flag: What is doubtful about the item.
    """

    row: int
    id: str
    prompt: str
    prediction: str
    reference: str
    extracted: str | None
    flexible: str | None
    answered: bool
    correct: bool
    flexible_correct: bool
    tokens: int
    truncated: bool
    options: int = 0
    language: str | None = None
    flag: str | None = None


def as_lines(records: Iterable[Record]) -> str:
    """Records as JSON, one a line."""
    return "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)


def read_records(path: Path) -> list[Record]:
    """Records that were written as lines.

    Raises:
        ActError: If the file cannot be read, or holds something else.
    """
    try:
        return [Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError, TypeError) as error:
        problem = f"must hold the generations of a test ({error})"
        raise ActError(ConfigIssue("RUN", str(path), problem, "Run `test` with this data once more.")) from error


ROLES = ("keep", "recover")


@dataclass(frozen=True)
class SetResult:
    """One row of the results: an evaluation set.

    Attributes:
        role: ``keep`` or ``recover``.
        kind: What an answer is.
        language: The set's.
        total: Items.
        correct: Right answers in the asked form: exact match.
        flexible: Right answers wherever they may be: flexible match.
        answered: Outputs with an answer in the asked form.
        truncated: Outputs that were cut before the model ended its turn.
        tokens: Mean length of the outputs, with the ends of its 95 % interval.
        chance: Share that guessing an option gets right; 0 where answers are free.
        worded: Outputs that have words, where their language was looked at.
        in_language: Those of them in the set's language.
        flagged: Items with something doubtful about them.
    """

    role: str
    kind: str
    language: str | None
    total: int
    correct: int
    flexible: int
    answered: int
    truncated: int
    tokens: tuple[float, float, float]
    chance: float = 0.0
    worded: int = 0
    in_language: int = 0
    flagged: int = 0

    def shares(self) -> dict[str, tuple[int, int]]:
        """Every share that was measured, as counts of what holds and of all."""
        found = {
            "exact_match": (self.correct, self.total),
            "flexible_match": (self.flexible, self.total),
            "answered": (self.answered, self.total),
            "accuracy_among_answered": (self.correct, self.answered),
            "truncated": (self.truncated, self.total),
        }
        return found | ({"in_language": (self.in_language, self.worded)} if self.worded else {})


Results = Mapping[str, SetResult]


def role_means(results: Results) -> dict[str, tuple[float, float, float]]:
    """The mean exact match of the sets of each role, each set counted alike as in the paper, with its interval."""
    by_role = {role: [(one.correct, one.total) for one in results.values() if one.role == role] for role in ROLES}
    return {role: mean_of_shares(counts) for role, counts in by_role.items() if counts}


def as_json(model: str, results: Results) -> str:
    """Everything, with shares and the ends of their 95 % intervals."""
    sets = {name: asdict(one) | {"shares": _with_bounds(one)} for name, one in results.items()}
    means = {role: dict(zip(("value", "low", "high"), mean, strict=True)) for role, mean in role_means(results).items()}
    return json.dumps({"model": model, "sets": sets, "means": means}, indent=2, ensure_ascii=False) + "\n"


def read_results(path: Path) -> dict[str, SetResult]:
    """The sets of results that were written as JSON.

    Raises:
        ActError: If the file cannot be read, or holds something else.
    """
    try:
        sets = json.loads(path.read_text(encoding="utf-8"))["sets"]
        return {name: _set_result(one) for name, one in sets.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"must be a run that was tested ({type(error).__name__}: {error})"
        raise ActError(
            ConfigIssue("RUN", str(path), problem, "Run `test` with its config and --model.target first.")
        ) from error


def _set_result(content: dict[str, Any]) -> SetResult:
    fields = {name: value for name, value in content.items() if name != "shares"}
    return SetResult(**fields | {"tokens": tuple(fields["tokens"])})


def _with_bounds(result: SetResult) -> dict[str, dict[str, float | None]]:
    found = {}
    for name, (holds, total) in result.shares().items():
        low, high = wilson(holds, total)
        found[name] = {"value": holds / total if total else None, "low": low, "high": high}
    return found


def as_csv(results: Results) -> str:
    """A line for each set: every count, and every share with the ends of its interval; empty where there is none."""
    lines = [_csv_line(name, one) for name, one in results.items()]
    text, columns = io.StringIO(), dict.fromkeys(column for line in lines for column in line)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_line(name: str, result: SetResult) -> dict[str, object]:
    counts = {key: value for key, value in asdict(result).items() if key != "tokens"}
    lengths = dict(zip(("tokens", "tokens_low", "tokens_high"), result.tokens, strict=True))
    line: dict[str, object] = {"set": name, **counts, **lengths}
    for share, numbers in _with_bounds(result).items():
        line |= {f"{share}_share" if end == "value" else f"{share}_{end}": value for end, value in numbers.items()}
    return line


_HEAD = (
    *("set", "role", "items", "exact match", "flexible", "answered", "right if answered"),
    *("chance", "in language", "cut", "tokens"),
)

_NOT_SHOWN = ("role", "right if answered", "tokens")


def cells(results: Results) -> list[tuple[str, ...]]:
    """The table's rows as text: shares in % with their 95 % intervals; then the means of each role."""
    rows = [_cells(name, one) for name, one in results.items()]
    for role, (value, low, high) in role_means(results).items():
        rows.append(("mean", role, "", shown(value, low, high), *[""] * (len(_HEAD) - 4)))
    return rows


def _cells(name: str, one: SetResult) -> tuple[str, ...]:
    shares = one.shares()
    columns = ("exact_match", "flexible_match", "answered", "accuracy_among_answered")
    measured = [share_shown(*shares[column]) for column in columns]
    chance = f"{100 * one.chance:.1f}" if one.chance else ""
    language = share_shown(*shares["in_language"]) if one.worded else ""
    cut, tokens = share_shown(*shares["truncated"]), f"{one.tokens[0]:.0f}"
    return name, one.role, str(one.total), *measured, chance, language, cut, tokens


def share_shown(holds: int, total: int) -> str:
    """A share in % with its interval.

    >>> share_shown(10, 20), share_shown(0, 0)
    ('50.0 (30–70)', '–')
    """
    return shown(holds / total, *wilson(holds, total)) if total else "–"


def shown(value: float, low: float, high: float) -> str:
    """A share and the ends of its interval, in %."""
    return f"{100 * value:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def as_table(results: Results) -> Table:
    """A table for the terminal: as Markdown has it, but for what is empty, or told by the files alone."""
    columns = list(zip(_HEAD, *cells(results), strict=True))
    kept = [column for column in columns if any(column[1:]) and column[0] not in _NOT_SHOWN]
    table = Table(title="Shares in %, below them their 95 % intervals", box=SIMPLE, pad_edge=False)
    for title, *_ in kept:
        table.add_column(title.replace(" ", "\n"), justify="left" if title == "set" else "right", no_wrap=True)
    roles = columns[1][1:]
    for role, row in zip(roles, zip(*(column[1:] for column in kept), strict=True), strict=True):
        name, *shares = (cell.replace(" (", "\n(") for cell in row)
        table.add_row(f"{name}\n({role})", *shares)
    return table


def as_markdown(results: Results) -> str:
    """The same table for a model card."""
    return markdown_table(_HEAD, cells(results))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Any table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
