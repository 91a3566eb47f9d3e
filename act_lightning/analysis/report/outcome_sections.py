"""Sections on a run's outcome: what its transfer moved, how it was evaluated, and the causal check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
_CAUSES_TITLE = "Whether the selected channels carry the ability"
_CAUSES_CLAIM = (
    "The paper selects channels by where two models differ and judges them by what a transfer brings; it has no check "
    "of single channels. This one is ours: on held-out samples, without changing weights."
)
_PANELS = {"patch": "source's activations patched in", "ablate": "ablated to their own mean"}


@contextmanager
def _parsing(path: Path, writer: str, hint: str) -> Iterator[None]:
    """Name the file if its content is not what ``writer`` writes."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        problem = f"must be what {writer} writes ({type(error).__name__}: {error})"
        raise ActError(ConfigIssue(str(path), path.name, problem, f"Delete the file, or {hint}.")) from error


def outcome_section(evidence: Evidence) -> list[Section | Absent]:
    """The transfer of each run, and its evaluations."""
    section = Section("outcome", _OUTCOME_TITLE)
    for number, run in enumerate(evidence.runs, 1):
        end = "" if len(evidence.runs) == 1 else f"-{number}"
        tables = {"transfer.json": _transfer_table, "evaluations/comparison.json": _evaluation_table}
        for name, make_table in tables.items():
            content = read_json(run / name)
            if content is None:
                continue
            with _parsing(run / name, "a run", "run again"):
                section.content.append(make_table(content, end, section.summary))
    if section.content:
        return [section]
    return [Absent(_OUTCOME_TITLE, "the run has neither transfer.json nor evaluations/comparison.json.")]


def _transfer_table(content: Any, end: str, summary: list[str]) -> ReportTable:  # noqa: ANN401 - JSON
    rows = {}
    for name, source in content["sources"].items():
        types = source["by_module_type"]
        rows[name] = row = {
            "λ": source["scale"],
            "p": source["ratio"],
            "channels": source["union"],
            "share of channels": source["union_share"],
            "parameters": source["parameters"],
            "share of parameters": source["parameter_share"],
            "lm_head": sum(types.get(leaf, 0) for leaf in HEAD_NAMES),
            "embedding": sum(types.get(leaf, 0) for leaf in EMBEDDING_NAMES),
        }
        summary.append(
            f"The run moved {counted(row['channels'], 'channel')} from {name} ({percent(row['share of parameters'])} "
            f"of the parameters): {counted(row['lm_head'], 'row')} of lm_head, "
            f"{counted(row['embedding'], 'feature')} of the embedding."
        )
    caption = (
        f"What was transferred from each source (union of its abilities' masks); selection “{content['selection']}”."
    )
    shares = frozenset({"p", "share of channels", "share of parameters"})
    return ReportTable(f"transfer{end}", caption, pd.DataFrame.from_dict(rows, orient="index"), shares)


def _evaluation_table(content: Any, end: str, summary: list[str]) -> ReportTable:  # noqa: ANN401 - JSON
    # brings transformers, seconds that most reports do without
    from act_lightning.evaluation.intervals import wilson
    from act_lightning.evaluation.tables import FINE_TUNING_ALONE

    rows = []
    for row in content:
        for name, total in row["total"].items():
            correct = row["correct"][name]
            low, high = wilson(correct, total)
            rows.append((row["model"], row["share"], name, correct, total, correct / total, low, high))
    accuracy = {
        row["model"]: {name: row["correct"][name] / total for name, total in row["total"].items()} for row in content
    }
    changed = [model for model in accuracy if model != "target" and not model.startswith("source ")]
    if changed and "target" in accuracy:
        best = max(changed, key=lambda model: sum(accuracy[model].values()) / len(accuracy[model]))
        shown = dict.fromkeys(model for model in ("target", FINE_TUNING_ALONE, best) if model in accuracy)
        for name in accuracy[best]:
            texts = [f"{model} {percent(accuracy[model][name])}" for model in shown if name in accuracy[model]]
            summary.append(f"Right answers to {name}: {', '.join(texts)}.")
    columns = ["model", "parameters moved", "set", "correct", "items", "accuracy", "95 % from", "to"]
    frame = pd.DataFrame(rows, columns=columns).set_index("model")
    caption = "Accuracy of every model of the run's comparison, with Wilson intervals."
    shares = frozenset({"parameters moved", "accuracy", "95 % from", "to"})
    return ReportTable(f"evaluations{end}", caption, frame, shares)


def causes_section(evidence: Evidence) -> list[Section | Absent]:
    """Every saved causal check of the runs."""
    rows: list[dict[str, Any]] = []
    for run in evidence.runs:
        for path in sorted(run.glob("causes/*/*.json")):
            prefix = f"{run.name}/" if len(evidence.runs) > 1 else ""
            content = read_json(path)
            with _parsing(path, "`causes`", "run `causes` again"):
                rows += _effect_rows(content, prefix)
    if not rows:
        reason = "scores say where two models act differently, not why; `causes` with the run's config asks."
        return [Absent(_CAUSES_TITLE, reason)]
    effects = pd.DataFrame(rows)
    summary = [_effect_sentence(*group) for group in effects.groupby("ability", sort=False)]
    changes = effects[(effects["against"] == "target") & effects["intervention"].isin(_PANELS)]
    names = {"ability": "row", "channels": "series", "change": "value", "95 % from": "low", "to": "high"}
    drawn = changes.rename(columns=names).assign(panel=changes["intervention"].map(_PANELS))
    caption = (
        "Change of the loss at answer tokens, with 95 % bootstrap intervals over held-out samples: of the selected "
        "channels, of as many random ones, and of as many of the same layers and modules. Left of zero is better."
    )
    figure = partial(intervals_figure, drawn, list(_PANELS.values()), "change of loss, nats a token")
    notes = (
        "The same in numbers, and selected channels against each control on the same samples. d: mean over standard "
        "deviation of the samples' differences. Share of the gap: of the way from the target's loss to the source's."
    )
    table = ReportTable("causes", notes, effects.set_index("ability"), frozenset({"share of the gap", "p"}))
    return [Section("causes", _CAUSES_TITLE, _CAUSES_CLAIM, summary, [Picture("causes", caption, figure), table])]


def _effect_rows(content: Any, prefix: str) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
    nan = float("nan")
    return [
        {
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
            "d": nan if effect["size"] is None else float(effect["size"]),
            "share of the gap": nan if effect["gap"] is None else float(effect["gap"]),
        }
        for effect in content["effects"]
    ]


def _effect_sentence(ability: object, rows: pd.DataFrame) -> str:
    """What the patch did, and whether other channels do as much."""
    patched = rows[rows["intervention"] == "patch"].set_index(["channels", "against"])
    change, gap = (float(patched.loc[("selected", "target"), column]) for column in ("change", "share of the gap"))
    channels = counted(int(rows["selected"].iloc[0]), "selected channel")
    sentence = f"{ability}: the source's activations in {channels} change the loss by {change:+.3g} nats a token"
    sentence += "" if pd.isna(gap) else f" ({percent(gap)} of the way to the source's)"
    for control, name in (("random", "random channels"), ("same modules", "channels of the same modules")):
        row = patched.loc[("selected", control)]
        low, high = float(row["95 % from"]), float(row["to"])
        if low <= 0 <= high:
            sentence += f"; not told apart from as many {name} ({low:+.3g} … {high:+.3g})"
        else:
            comparison = "lower" if high < 0 else "higher"
            sentence += f"; {comparison} than with as many {name} ({low:+.3g} … {high:+.3g})"
    return f"{sentence}."
