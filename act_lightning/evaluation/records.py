"""Every generation with what was made of it: one line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from act_lightning.errors import ActError, Fault


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
        rule = f"must hold the generations of a test ({error})"
        raise ActError(Fault("RUN", str(path), rule, "Run `test` with this data once more.")) from error
