"""From abilities to translated Parquet files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from act_lightning.data import AbilityData
from act_lightning.errors import Fault, refuse
from act_lightning.translation.ledger import Ledger
from act_lightning.translation.output import write_report, write_set_aside, write_translation
from act_lightning.translation.report import TranslationReport, make_report
from act_lightning.translation.running import run
from act_lightning.translation.settings import TranslationSettings, translation_faults
from act_lightning.translation.work import Assignment, assignments


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
    refuse(translation_faults(settings, abilities))
    work = assignments(abilities, settings)
    sets: dict[str, list[Assignment]] = defaultdict(list)
    for one in work:
        sets[one.name].append(one)
    out = Path(settings.out)
    with Ledger(out / "ledger.jsonl") as ledger:
        effort = run(work, settings, ledger)
        report = make_report(sets, effort, ledger, settings.prices)
        for name, figures in report.sets.items():
            if figures.translated and not figures.unanswered:
                write_translation(out / f"{name}.parquet", sets[name], effort.outcomes)
        write_set_aside(out / "set_aside.jsonl", work, effort.outcomes)
        write_report(out / "report.json", report)
    if effort.stopped:
        raise effort.stopped
    refuse(_empty(name) for name, one in report.sets.items() if one.set_aside == one.rows)
    return report


def _empty(name: str) -> Fault:
    rule = "must keep a row, but all are set aside"
    return Fault("translate", name, rule, "Read the reasons in set_aside.jsonl; another model may do better.")
