"""What a run will do and what will go wrong, from configs, headers and a few rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from act_lightning.checkpoints.weight_files import is_weightless
from act_lightning.console import Console, Table, format_bytes
from act_lightning.errors import ActError, ConfigIssue, Level
from act_lightning.planning.checks import Models, Run, configured_callbacks, inspect_models, run_issues, target_channels
from act_lightning.planning.data_checks import first_rows_issues
from act_lightning.planning.forecast import (
    disk_forecast,
    memory_forecast,
    parameter_ranges,
    resource_issues,
    selection_counts,
    time_forecast,
)
from act_lightning.planning.pair_checks import buffer_notes, config_notes, lineage, tokenizer_issues, weight_notes
from act_lightning.planning.training_forecast import training_issues
from act_lightning.scorers import SCORERS
from act_lightning.sweep.sweep_settings import count_points
from act_lightning.transfer.settings import effective_scales

_COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}


@dataclass
class Plan:
    """What will happen.

    Attributes:
        channels: ``total``, and ``per_ability``: how many channels p selects; ``None`` where only the scores can tell.
        parameters: ``total`` number of the target's elements, all of which are fine-tuned; ``per_ability``, how many of
            them the selected channels own; and if weights are there ``siblings``, how alike rows of the pair are.
        memory: Bytes that one process holds in profiling, in the merge and in training, and that this machine has.
        disk: Bytes that are written, and that are free.
        issues: What is wrong or worth knowing: errors, then warnings, then notes.
        time: Seconds on this machine; empty unless requested.
        sweep: Number of ``points`` of a sweep, the target among them; empty for other verbs.
    """

    channels: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    issues: list[ConfigIssue] = field(default_factory=list)
    time: dict[str, float] = field(default_factory=dict)
    sweep: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists, strings and numbers; ``time`` and ``sweep`` only where there is something to say."""
        content: dict[str, Any] = {
            "channels": self.channels,
            "parameters": self.parameters,
            "memory": self.memory,
            "disk": self.disk,
            "problems": [issue.to_json() for issue in self.issues],
        }
        optional = {"time": self.time, "sweep": self.sweep}
        return content | {name: values for name, values in optional.items() if values}

    @property
    def has_error(self) -> bool:
        """Whether a run would fail."""
        return any(issue.level == "error" for issue in self.issues)


def make_plan(run: Run, verb: str = "fit", calibrate: bool = False) -> Plan:
    """Plan a run without building a Trainer or loading weights; mistakes become issues of the plan.

    Args:
        run: The sections of the config.
        verb: ``fit``, ``merge``, ``profile`` or ``sweep``.
        calibrate: Whether to measure the speed of this machine, which reads the abilities.
    """
    models = inspect_models(run)
    plan = Plan(issues=run_issues(run, verb, models))
    if verb == "sweep" and run.sweep is not None and not plan.issues:
        plan.sweep = {"points": 1 + count_points(run.sweep, run.transfer.settings)}
    plan.issues += _scale_warnings(run, verb)
    if verb == "fit":
        plan.issues += training_issues(run)
    plan.issues += [issue for issue in first_rows_issues(run, verb, models) if issue not in plan.issues]
    if models.target is not None:
        plan.issues += _pair_issues(plan, run, models, models.target)
        _add_forecast(plan, run, models, models.target, verb)
        if calibrate and not plan.has_error:
            try:
                plan.time = time_forecast(run, models.target, verb)
            except ActError as error:
                plan.issues += error.issues
    if not plan.has_error:
        plan.issues += _selection_notes(run, verb)
    plan.issues.sort(key=lambda issue: get_args(Level).index(issue.level))
    return plan


def _scale_warnings(run: Run, verb: str) -> list[ConfigIssue]:
    """Warnings of scaling factors above 1, at which values move on beyond the source's."""
    scales = effective_scales(run.transfer.settings, run.sources)
    if verb == "sweep" and run.sweep is not None:
        scales = {
            "sweep.scales": max((each for each in run.sweep.tried_scales if isinstance(each, float)), default=0.0)
        }
    hint = "Write 1 for the source's own values; the paper tries 0.1 to 0.9."
    return [
        ConfigIssue(
            name, ..., f"{name} {scale:g} moves selected values {scale:g} times as far as the source", hint, "warning"
        )
        for name, scale in scales.items()
        if scale > 1
    ]


def _selection_notes(run: Run, verb: str) -> list[ConfigIssue]:
    """A note on the choice of a selection, where the paper's rule ranks all modules and is compared with no other."""
    settings = run.transfer.settings
    every_module = settings.scope == "global" and not settings.exclude and "*" in settings.include
    compares = "TransferComparison" in configured_callbacks(run)
    if verb == "sweep" and run.sweep is not None:
        compares = not {*SCORERS}.isdisjoint(run.sweep.compared)
    if not run.sources or settings.selection != "activation" or not every_module or compares:
        return []
    problem = "transfer.selection is the paper's rule over all modules, which may select little but rows of lm_head"
    hint = "Others recover more on small models: --config configs/recommended.yaml; see docs/choosing.md."
    return [ConfigIssue("transfer.selection", ..., problem, hint, "note")]


def _pair_issues(plan: Plan, run: Run, models: Models, target: Path) -> list[ConfigIssue]:
    """Missing weights, and all differences of target and sources; how alike their rows are goes into the plan."""
    sources = [(f"profile.sources[{i}].model", run.sources[i], folder) for i, folder in models.sources.items()]
    issues = weight_notes("model.target", run.model.target, target)
    for setting, source, folder in sources:
        issues += weight_notes(setting, source.model, folder)
    for setting, source, folder in sources:
        issues += config_notes(target, folder, setting) + tokenizer_issues(target, folder, setting)
        if is_weightless(target) or is_weightless(folder):
            continue
        try:
            issues += buffer_notes(target, folder, setting)
            relation = lineage(target, folder)
        except ActError as error:
            issues += error.issues
            continue
        if relation is not None:
            plan.parameters.setdefault("siblings", {})[source.label] = asdict(relation)
            issues += relation.issues(setting)
    return issues


def _add_forecast(plan: Plan, run: Run, models: Models, target: Path, verb: str) -> None:
    """Add channels, parameters, memory and disk to the plan, with warnings of what this machine lacks."""
    try:
        channels = models.channels or target_channels(target)
        plan.parameters = {"total": channels.parameters, **plan.parameters}
        plan.memory = memory_forecast(run, channels, target, verb)
        plan.disk = disk_forecast(run, channels, target, verb)
    except ActError:
        return  # reported already, or irrelevant: plain fine-tuning needs no channels
    counts = selection_counts(run, channels)
    plan.channels = {"total": channels.total, "per_ability": counts}
    plan.parameters["per_ability"] = parameter_ranges(run, channels, counts)
    plan.issues += resource_issues(run, plan.disk, plan.memory, verb)


def print_plan(plan: Plan, as_json: bool) -> int:
    """Print a plan on standard output.

    Returns:
        The exit status: 1 if the plan holds an error.
    """
    if as_json:
        print(json.dumps(plan.to_json(), indent=2))
        return int(plan.has_error)
    console = Console()
    if plan.channels:
        table = Table("what will happen", "", box=None)
        for name, figure in _rows(plan):
            table.add_row(name, figure)
        console.print(table)
    for issue in plan.issues:
        console.print(f"{issue.level}:", style=_COLORS[issue.level], end=" ")
        console.print(str(issue), soft_wrap=True)
    if not plan.issues:
        console.print("no problems found")
    return int(plan.has_error)


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "channels", f"{plan.channels['total']:,}"
    yield "parameters", f"{plan.parameters['total']:,}"
    for name, relation in plan.parameters.get("siblings", {}).items():
        reference = f"unrelated {relation['chance']:.3f}, differs by {relation['difference']:.1%}"
        yield f"rows of {name} in the target", f"cosine {relation['cosine']:.3f} ({reference})"
    for ability, count in plan.channels["per_ability"].items():
        yield f"selected for {ability}", "as the scores say" if count is None else f"{count:,}"
        if parameters := plan.parameters["per_ability"].get(ability):
            yield "  parameters", f"{parameters['least']:,} to {parameters['most']:,}"
    for title, sizes in (("memory", plan.memory), ("disk", plan.disk)):
        for name, size in sizes.items():
            if size:
                yield f"{title}: {name.replace('_', ' ')}", format_bytes(size)
    if plan.sweep:
        yield "points of the sweep", f"{plan.sweep['points']:,}"
    for name, figure in plan.time.items():
        yield f"time: {name.replace('_', ' ')}", f"{figure:,.0f}" + ("" if name.endswith("tokens") else " s")
