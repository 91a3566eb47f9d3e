"""Sections on a run's outcome: what its transfer moved, how it was evaluated, and the causal check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from act_lightning.analysis.figures.findings import intervals_figure
from act_lightning.analysis.report.evidence import Evidence
from act_lightning.analysis.report.page import Absent, Picture, ReportTable, Section, counted, percent
from act_lightning.analysis.saved import read_json
from act_lightning.architecture import EMBEDDING_NAMES, HEAD_NAMES
from act_lightning.errors import ActError, ConfigIssue

_OUTCOME_TITLE = "What the run moved, and what came of it"


def outcome_section(evidence: Evidence) -> list[Section | Absent]:
    """The transfer of each run, and its evaluations."""
    section = Section("outcome", _OUTCOME_TITLE)
    for number, run in enumerate(evidence.runs, 1):
        end = "" if len(evidence.runs) == 1 else f"-{number}"
        for name, work in (("transfer.json", _transfer), ("evaluations/comparison.json", _evaluations)):
            content = read_json(run / name)
            if content is not None:
                section.content.append(_parse_outcome(work, run / name, content, end, section.summary))
    if section.content:
        return [section]
    return [Absent(_OUTCOME_TITLE, "the run has neither transfer.json nor evaluations/comparison.json.")]


def _parse_outcome(
    work: Callable[[Any, str, list[str]], ReportTable], path: Path, content: object, end: str, summary: list[str]
) -> ReportTable:
    try:
        return work(content, end, summary)
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        problem = f"must be what a run writes ({type(error).__name__}: {error})"
        raise ActError(ConfigIssue(str(path), path.name, problem, "Delete the file, or run again.")) from error


def _transfer(content: Any, end: str, summary: list[str]) -> ReportTable:  # noqa: ANN401 - JSON
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
            "lm_head": sum(types.get(leaf, 0) for leaf in HEAD_NAMES),
            "embedding": sum(types.get(leaf, 0) for leaf in EMBEDDING_NAMES),
        }
        summary.append(_moved(name, rows[name]))
    frame = pd.DataFrame.from_dict(rows, orient="index")
    caption = (
        f"What was transferred from each source (union of its abilities' masks); selection “{content['selection']}”."
    )
    return ReportTable(f"transfer{end}", caption, frame, frozenset({"p", "share of channels", "share of parameters"}))


def _moved(source: str, row: dict[str, Any]) -> str:
    return (
        f"The run moved {counted(row['channels'], 'channel')} from {source} ({percent(row['share of parameters'])} of "
        f"the parameters): {counted(row['lm_head'], 'row')} of lm_head, "
        f"{counted(row['embedding'], 'feature')} of the embedding."
    )


def _evaluations(content: Any, end: str, summary: list[str]) -> ReportTable:  # noqa: ANN401 - JSON
    from act_lightning.evaluation.intervals import wilson  # brings transformers, seconds that most reports do without

    rows = []
    for row in content:
        for name, total in row["total"].items():
            low, high = wilson(row["correct"][name], total)
            accuracy = row["correct"][name] / total
            rows.append((row["model"], row["share"], name, row["correct"][name], total, accuracy, low, high))
    columns = ["model", "parameters moved", "set", "correct", "items", "accuracy", "95 % from", "to"]
    frame = pd.DataFrame(rows, columns=columns).set_index("model")
    shares = frozenset({"parameters moved", "accuracy", "95 % from", "to"})
    return ReportTable(
        f"evaluations{end}", "Exact match of every model of the run's comparison, with Wilson intervals.", frame, shares
    )


_CAUSES_TITLE = "Whether the selected channels carry the ability"
_CLAIM = (
    "The paper selects channels by where two models differ and judges them by what a transfer brings; it has no check "
    "of single channels. This one is ours: on held-out samples, without changing weights."
)
PATCHED, ABLATED = "source's activations patched in", "ablated to their own mean"
_PANELS = {"patch": PATCHED, "ablate": ABLATED}


def causes_section(evidence: Evidence) -> list[Section | Absent]:
    """Every saved check of the runs."""
    found = [(run, path, read_json(path)) for run in evidence.runs for path in sorted(run.glob("causes/*/*.json"))]
    if not found:
        reason = "scores say where two models act differently, not why; `causes` with the run's config asks."
        return [Absent(_CAUSES_TITLE, reason)]
    several = len(evidence.runs) > 1
    rows = pd.DataFrame([row for run, path, content in found for row in _parse_causes(run, path, content, several)])
    section = Section("causes", _CAUSES_TITLE, _CLAIM, [_said(*one) for one in rows.groupby("ability", sort=False)])
    against_target = rows[(rows["against"] == "target") & rows["intervention"].isin(_PANELS)]
    drawn = pd.DataFrame(
        {
            "panel": against_target["intervention"].map(_PANELS),
            "row": against_target["ability"],
            "series": against_target["channels"],
            "value": against_target["change"],
            "low": against_target["95 % from"],
            "high": against_target["to"],
        }
    )
    caption = (
        "Change of the loss at answer tokens, with 95 % bootstrap intervals over held-out samples: of the selected "
        "channels, of as many random ones, and of as many of the same layers and modules. Left of zero is better."
    )
    figure = partial(intervals_figure, drawn, list(_PANELS.values()), "change of loss, nats a token")
    shares = frozenset({"share of the gap", "p"})
    notes = (
        "The same in numbers, and selected channels against each control on the same samples. d: mean over standard "
        "deviation of the samples' differences. Share of the gap: of the way from the target's loss to the source's."
    )
    section.content += [
        Picture("causes", caption, figure),
        ReportTable("causes", notes, rows.set_index("ability"), shares),
    ]
    return [section]


def _parse_causes(run: Path, path: Path, content: Any, several: bool) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    try:
        yield from _causes_rows(content, f"{run.name}/" if several else "")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"must be what `causes` writes ({type(error).__name__}: {error})"
        raise ActError(ConfigIssue(str(path), path.name, problem, "Delete the file, or run `causes` again.")) from error


def _causes_rows(content: Any, prefix: str) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    for effect in content["effects"]:
        yield {
            "ability": f"{prefix}{content['source']}: {content['ability']}",
            "p": float(content["ratio"]),
            "selected": int(content["channels"]),
            "samples": int(content["samples"]),
            "intervention": str(effect["intervention"]),
            "channels": str(effect["channels"]),
            "against": str(effect["against"]),
            "change": float(effect["change"]),
            "95 % from": float(effect["low"]),
            "to": float(effect["high"]),
            "d": _number(effect["size"]),
            "share of the gap": _number(effect["gap"]),
        }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _said(ability: object, rows: pd.DataFrame) -> str:
    """What the patch did, and whether other channels do as much."""
    patched = rows[rows["intervention"] == "patch"].set_index(["channels", "against"])
    change, gap = (float(patched.loc[("selected", "target"), column]) for column in ("change", "share of the gap"))
    channels = counted(int(rows["selected"].iloc[0]), "selected channel")
    told = f"{ability}: the source's activations in {channels} change the loss by {change:+.3g} nats a token"
    told += "" if pd.isna(gap) else f" ({percent(gap)} of the way to the source's)"
    return f"{told}; {_compared('random channels', patched.loc[('selected', 'random')])}; " + (
        f"{_compared('channels of the same modules', patched.loc[('selected', 'same modules')])}."
    )


def _compared(others: str, row: pd.Series) -> str:
    low, high = float(row["95 % from"]), float(row["to"])
    if low <= 0 <= high:
        return f"not told apart from as many {others} ({low:+.3g} … {high:+.3g})"
    return f"{'lower' if high < 0 else 'higher'} than with as many {others} ({low:+.3g} … {high:+.3g})"
