"""What a run's transfer moved, and how it was evaluated, where the run says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from act_lightning.analysis.location import EMBEDDINGS, HEADS
from act_lightning.analysis.report.content import Absent, Section, Table
from act_lightning.analysis.report.evidence import Evidence
from act_lightning.analysis.report.wording import counted, percent
from act_lightning.analysis.saved import read_json
from act_lightning.errors import ActError, Fault

_TITLE = "What the run moved, and what came of it"


def outcome_section(evidence: Evidence) -> list[Section | Absent]:
    """The transfer of each run, and its evaluations."""
    section = Section("outcome", _TITLE)
    for number, run in enumerate(evidence.runs, 1):
        end = "" if len(evidence.runs) == 1 else f"-{number}"
        for name, work in (("transfer.json", _transfer), ("evaluations/comparison.json", _evaluations)):
            content = read_json(run / name)
            if content is not None:
                section.content.append(_understood(work, run / name, content, end, section.summary))
    if section.content:
        return [section]
    return [Absent(_TITLE, "the run has neither transfer.json nor evaluations/comparison.json.")]


def _understood(
    work: Callable[[Any, str, list[str]], Table], path: Path, content: object, end: str, summary: list[str]
) -> Table:
    try:
        return work(content, end, summary)
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        rule = f"must be what a run writes ({type(error).__name__}: {error})"
        raise ActError(Fault(str(path), path.name, rule, "Delete the file, or run again.")) from error


def _transfer(content: Any, end: str, summary: list[str]) -> Table:  # noqa: ANN401 - JSON
    rows = {}
    for name, source in content["sources"].items():
        types = source["by_module_type"]
        rows[name] = {
            "λ": source["scale"],
            "p": source["ratio"],
            "channels": source["union"],
            "share of channels": source["union_share"],
            "parameters": source["parameters"],
            "share of parameters": source["parameter_share"],
            "lm_head": sum(types.get(leaf, 0) for leaf in HEADS),
            "embedding": sum(types.get(leaf, 0) for leaf in EMBEDDINGS),
        }
        summary.append(_moved(name, rows[name]))
    frame = pd.DataFrame.from_dict(rows, orient="index")
    caption = (
        f"What was transferred from each source (union of its abilities' masks); selection “{content['selection']}”."
    )
    return Table(f"transfer{end}", caption, frame, frozenset({"p", "share of channels", "share of parameters"}))


def _moved(source: str, row: dict[str, Any]) -> str:
    return (
        f"The run moved {counted(row['channels'], 'channel')} from {source} ({percent(row['share of parameters'])} of "
        f"the parameters): {counted(row['lm_head'], 'row')} of lm_head, "
        f"{counted(row['embedding'], 'feature')} of the embedding."
    )


def _evaluations(content: Any, end: str, summary: list[str]) -> Table:  # noqa: ANN401 - JSON
    from act_lightning.evaluation import wilson  # brings transformers, seconds that most reports do without

    rows = []
    for row in content:
        for name, total in row["total"].items():
            low, high = wilson(row["correct"][name], total)
            accuracy = row["correct"][name] / total
            rows.append((row["model"], row["share"], name, row["correct"][name], total, accuracy, low, high))
    columns = ["model", "parameters moved", "set", "correct", "items", "accuracy", "95 % from", "to"]
    frame = pd.DataFrame(rows, columns=columns).set_index("model")
    shares = frozenset({"parameters moved", "accuracy", "95 % from", "to"})
    return Table(
        f"evaluations{end}", "Exact match of every model of the run's comparison, with Wilson intervals.", frame, shares
    )
