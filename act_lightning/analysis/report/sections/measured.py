"""What the scores were measured on."""

from __future__ import annotations

import pandas as pd

from act_lightning.analysis.report.content import Absent, Section, Table
from act_lightning.analysis.report.evidence import Evidence, PairView
from act_lightning.analysis.report.wording import counted


def measured_section(evidence: Evidence) -> list[Section | Absent]:
    """Pairs, abilities, samples and channels."""
    saved = evidence.saved
    section = Section("measured", "What was measured")
    tokens = sum(record.tokens for pair in saved.pairs for record in pair.records.values())
    section.summary.append(
        f"Scores of {counted(len(evidence.abilities), 'ability', 'abilities')} on "
        f"{counted(len(saved.pairs), 'pair')} of models ({'; '.join(pair.label for pair in saved.pairs)}): "
        f"{counted(saved.inventory.total, 'channel')} in {counted(len(saved.inventory.modules), 'module')}, "
        f"averaged over {counted(tokens, 'answer token')} in all."
    )
    if not saved.ordered:
        section.content.append(
            "The score files do not say the model's order of modules: channels of equal score are ranked in the usual "
            "order (embedding, layers, final norm, head), which may differ from the model's."
        )
    frame = pd.concat([_rows(view) for view in evidence.views], ignore_index=True)
    caption = "Abilities and samples. Labels are the paper's: language and domain are read from the abilities' names."
    section.content.append(Table("measured", caption, frame.set_index("ability")))
    return [section]


def _rows(view: PairView) -> pd.DataFrame:
    rows = []
    for label, ability in view.abilities.items():
        record = view.pair.records[ability.name]
        versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
        rows.append(
            {
                "ability": label,
                "name": ability.name,
                "language": ability.language or "not named",
                "domain": ability.domain,
                "samples": record.samples,
                "dropped": record.dropped,
                "answer tokens": record.tokens,
                "precision": record.dtype,
                "pair": view.pair.label,
                "run": view.pair.run.name,
                "versions": versions,
            }
        )
    return pd.DataFrame(rows)
