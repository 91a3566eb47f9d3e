"""The files of a translation: Parquet, what was set aside, and the report; each complete or not there."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from act_lightning.checkpoints import write_file
from act_lightning.translation.report import TranslationReport
from act_lightning.translation.running import Outcome
from act_lightning.translation.work import Assignment


def write_translation(path: Path, work: Sequence[Assignment], outcomes: Mapping[str, Outcome]) -> None:
    """Write the translated rows as Parquet, in the order of the originals.

    The columns ``prompt`` and ``answer`` are an ability's; ``original_prompt``, ``original_answer``, ``place``,
    ``language`` and ``model`` tell where they come from.

    Args:
        path: The file to be.
        work: What was to be translated.
        outcomes: What became of it, by key.
    """
    import pyarrow  # here, because most runs write no Parquet
    import pyarrow.parquet

    rows = []
    for one in work:
        if texts := outcomes[one.key].texts:
            original = {"original_prompt": one.original.prompt, "original_answer": one.original.answer}
            rows.append(
                {**texts, **original, "place": one.original.place, "language": one.language, "model": one.model}
            )
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content)
    write_file(path, content.getvalue())


def write_set_aside(path: Path, work: Sequence[Assignment], outcomes: Mapping[str, Outcome]) -> None:
    """Write the rows without a translation as JSONL, each with the reasons; the file is empty if there are none.

    Args:
        path: The file to be.
        work: What was to be translated.
        outcomes: What became of it, by key.
    """
    lines = []
    for one in work:
        outcome = outcomes.get(one.key)
        if outcome and outcome.texts is None:
            told = {"set": one.name, "place": one.original.place, "reasons": list(outcome.reasons)}
            row = told | {"prompt": one.original.prompt, "answer": one.original.answer}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_file(path, "".join(lines))


def write_report(path: Path, report: TranslationReport) -> None:
    """Write a report as JSON.

    Args:
        path: The file to be.
        report: The figures.
    """
    write_file(path, json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
