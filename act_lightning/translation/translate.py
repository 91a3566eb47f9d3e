"""From abilities to translated Parquet files."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from act_lightning.checkpoints.files import write_file
from act_lightning.data.ability_data import AbilityData
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.translation.journal import Journal
from act_lightning.translation.report import TranslationReport, make_report
from act_lightning.translation.runner import Outcome, run
from act_lightning.translation.settings import TranslationSettings, translation_issues
from act_lightning.translation.work import Assignment, assignments


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


def translate(abilities: Mapping[str, AbilityData], settings: TranslationSettings) -> TranslationReport:
    """Translate abilities, and write what became of them under ``translate.out``.

    ``<ability>-<language>.parquet`` is written when each of its rows is either translated or set aside;
    ``ledger.jsonl`` holds every reply that was paid for, ``set_aside.jsonl`` the rows without a translation with the
    reasons, ``report.json`` the figures. A run after a kill, a failure or a change of other rows asks only for what the
    ledger does not answer.

    Args:
        abilities: What is to be translated, by name.
        settings: Into which languages, by whom, how fast.

    Raises:
        ActError: If settings are wrong, rows cannot be read, another run writes the same ledger, the endpoint refuses
            everything (after all files that can be were written), or an ability keeps no row at all.
    """
    raise_if_any(translation_issues(settings, abilities))
    work = assignments(abilities, settings)
    sets: dict[str, list[Assignment]] = defaultdict(list)
    for one in work:
        sets[one.name].append(one)
    out = Path(settings.out)
    with Journal(out / "ledger.jsonl") as ledger:
        effort = run(work, settings, ledger)
        report = make_report(sets, effort, ledger, settings.prices)
        for name, figures in report.sets.items():
            if figures.translated and not figures.unanswered:
                write_translation(out / f"{name}.parquet", sets[name], effort.outcomes)
        write_set_aside(out / "set_aside.jsonl", work, effort.outcomes)
        write_report(out / "report.json", report)
    if effort.stopped:
        raise effort.stopped
    raise_if_any(_empty(name) for name, one in report.sets.items() if one.set_aside == one.rows)
    return report


def _empty(name: str) -> ConfigIssue:
    problem = "must keep a row, but all are set aside"
    return ConfigIssue("translate", name, problem, "Read the reasons in set_aside.jsonl; another model may do better.")
