"""What a run will do and what will go wrong, from configs, headers and a few rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from act_lightning.channels import inventory
from act_lightning.checkpoints.compatibility import config_differences
from act_lightning.checkpoints.models import load_config, meta_model, stored_dtype
from act_lightning.checkpoints.weight_files import is_weightless
from act_lightning.errors import ActError
from act_lightning.planning.calibration import time_forecast
from act_lightning.planning.checks import distinct, output_place_issues, setting_issues, transfer_issues
from act_lightning.planning.forecast import (
    attribution_notes,
    disk_forecast,
    memory_forecast,
    memory_problems,
    parameter_ranges,
    selection_counts,
    space_problems,
)
from act_lightning.planning.pair_checks import lineage, tokenizer_problems
from act_lightning.planning.problem import Level, Problem, from_issue
from act_lightning.planning.run import Models, Run, inspect_models
from act_lightning.planning.training_checks import training_problems
from act_lightning.sweep.points import count_points

_KEPT = "Nothing to do: the target's config is kept. The paper's own pair differs in such values."


@dataclass
class Plan:
    """What will happen.

    Attributes:
        channels: ``total``, and ``per_ability``: how many channels p selects; ``None`` where only the scores can tell.
        parameters: ``total`` number of the target's elements, all of which are fine-tuned; ``per_ability``, how many of
            them the selected channels own; and where weights are there ``siblings``, how alike rows of the pair are.
        memory: Bytes that one process holds in profiling, in the merge and in training, and that this machine has.
        disk: Bytes that are written, and that are free.
        problems: What is wrong or worth knowing: errors, then warnings, then notes.
        time: Seconds on this machine; empty unless asked for.
        sweep: Number of ``points`` of a sweep, the target among them; empty for other verbs.
    """

    channels: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    time: dict[str, float] = field(default_factory=dict)
    sweep: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists, strings and numbers; ``time`` and ``sweep`` only where there is something to say."""
        return {key: value for key, value in asdict(self).items() if value or key not in ("time", "sweep")}

    @property
    def has_error(self) -> bool:
        """Whether a run would fail."""
        return any(problem.level == "error" for problem in self.problems)


def make_plan(run: Run, verb: str = "fit", calibrate: bool = False) -> Plan:
    """Plan a run; it never builds a Trainer or loads weights, and mistakes become problems of the plan.

    Args:
        run: The run.
        verb: What is planned: ``fit``, ``merge``, ``profile`` or ``sweep``.
        calibrate: Whether to measure the speed of this machine, which reads the abilities.
    """
    models, plan = inspect_models(run), Plan()
    issues = setting_issues(run, "plan" if verb == "fit" else verb) + models.issues + transfer_issues(run, models, verb)
    issues += output_place_issues(run, models, verb)
    plan.problems = [from_issue(issue) for issue in distinct(issues)]
    plan.problems += training_problems(run) if verb == "fit" else []
    if verb == "sweep" and run.sweep is not None and not issues:
        plan.sweep = {"points": 1 + count_points(run.sweep, run.transfer.settings)}
    if models.target is not None:
        plan.problems += _pair_problems(plan, run, models, models.target)
        _forecast(plan, run, models, models.target, verb)
        if calibrate and not plan.has_error:
            _measure(plan, run, models.target, verb)
    plan.problems.sort(key=lambda problem: get_args(Level).index(problem.level))
    return plan


def _forecast(plan: Plan, run: Run, models: Models, target: Path, verb: str) -> None:
    try:
        channels = models.channels or inventory(meta_model(target))
        plan.parameters = {"total": channels.parameters, **plan.parameters}
        plan.memory = memory_forecast(run, channels, target, verb)
        plan.disk = disk_forecast(run, channels, target, verb)
    except ActError:
        return  # told already, or no matter: plain fine-tuning needs no channels
    counts = selection_counts(run, channels)
    plan.channels = {"total": channels.total, "per_ability": counts}
    plan.parameters["per_ability"] = parameter_ranges(run, channels, counts)
    plan.problems += space_problems(plan.disk) + memory_problems(run, plan.memory) + attribution_notes(run, verb)


def _measure(plan: Plan, run: Run, target: Path, verb: str) -> None:
    try:
        plan.time = time_forecast(run, target, verb)
    except ActError as error:
        plan.problems += [from_issue(issue) for issue in error.issues]


def _pair_problems(plan: Plan, run: Run, models: Models, target: Path) -> list[Problem]:
    """Missing weights, and everything in which target and sources differ; how alike they are goes into the plan."""
    places = {f"profile.sources[{i}].model": (run.sources[i].model, folder) for i, folder in models.sources.items()}
    found = [
        problem
        for setting, (name, folder) in {"model.target": (run.model.target, target), **places}.items()
        for problem in _weight_notes(setting, name, folder)
    ]
    for i, folder in models.sources.items():
        setting = f"profile.sources[{i}].model"
        for difference in config_differences(target, folder):
            found.append(Problem("note", setting, str(difference), _KEPT))
        found += _dtype_notes(target, folder, setting) + _size_notes(target, folder, setting)
        found += tokenizer_problems(target, folder, setting)
        found += _lineage_problems(plan, target, folder, setting, run.sources[i].label)
    return found


def _weight_notes(setting: str, name: str, folder: Path) -> list[Problem]:
    if not is_weightless(folder):
        return []
    message = f"{folder} holds a config but no weights, so only shapes were compared"
    here = Path(name).expanduser().is_dir()
    return [
        Problem(
            "note", setting, message, "Put the weights there before the run." if here else "The run will fetch them."
        )
    ]


def _dtype_notes(target: Path, source: Path, setting: str) -> list[Problem]:
    mine, other = (str(stored_dtype(folder)).removeprefix("torch.") for folder in (target, source))
    if mine == other:
        return []
    message = f"stored as {other}, the target as {mine}"
    return [Problem("note", setting, message, "Nothing to do: differences are taken in float32, and rounded once.")]


def _size_notes(target: Path, source: Path, setting: str) -> list[Problem]:
    mine, other = (int(load_config(folder).get_text_config().vocab_size) for folder in (target, source))
    if mine == other:
        return []
    message = f"a vocabulary of {other:,} entries, and the target's has {mine:,}"
    remedy = "Nothing to do: entries are matched by the tokenizers' tokens, and those without a partner keep every bit."
    return [Problem("note", setting, message, remedy)]


def _lineage_problems(plan: Plan, target: Path, source: Path, setting: str, name: str) -> list[Problem]:
    if is_weightless(target) or is_weightless(source):
        return []
    try:
        found = lineage(target, source)
    except ActError as error:
        return [from_issue(issue) for issue in error.issues]
    if found is None:
        return []
    plan.parameters.setdefault("siblings", {})[name] = found.to_json()
    return found.problems(setting)


_COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}
_MEGABYTE, _GIGABYTE = 1e6, 1e9


def print_plan(plan: Plan, as_json: bool) -> int:
    """Print a plan on standard output.

    Returns:
        The exit status: 1 if the plan holds an error.
    """
    if as_json:
        print(json.dumps(plan.to_json(), indent=2))
    else:
        _print_tables(plan, Console(highlight=False))
    return int(plan.has_error)


def _print_tables(plan: Plan, console: Console) -> None:
    if plan.channels:
        table = Table("what will happen", "", box=None)
        for name, figure in _rows(plan):
            table.add_row(name, figure)
        console.print(table)
    for problem in plan.problems:
        console.print(f"[{_COLORS[problem.level]}]{problem.level}:[/]", end=" ")
        console.print(str(problem), markup=False, soft_wrap=True)
    if not plan.problems:
        console.print("no problems found")


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "channels", f"{plan.channels['total']:,}"
    yield "parameters", f"{plan.parameters['total']:,}"
    for name, found in plan.parameters.get("siblings", {}).items():
        unlike = f"unrelated {found['chance']:.3f}, differs by {found['difference']:.1%}"
        yield f"rows of {name} in the target", f"cosine {found['cosine']:.3f} ({unlike})"
    for ability, count in plan.channels["per_ability"].items():
        yield f"selected for {ability}", "as the scores say" if count is None else f"{count:,}"
        if owned := plan.parameters["per_ability"].get(ability):
            yield "  parameters", f"{owned['least']:,} to {owned['most']:,}"
    for title, figures in (("memory", plan.memory), ("disk", plan.disk)):
        for name, size in figures.items():
            if size:
                yield f"{title}: {name.replace('_', ' ')}", _size(size)
    if plan.sweep:
        yield "points of the sweep", f"{plan.sweep['points']:,}"
    for name, figure in plan.time.items():
        yield f"time: {name.replace('_', ' ')}", f"{figure:,.0f}" + ("" if name.endswith("tokens") else " s")


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(15_231_233_024), _size(277_760)
    ('15.23 GB', '0.28 MB')
    """
    return f"{count / _GIGABYTE:,.2f} GB" if count >= _GIGABYTE else f"{count / _MEGABYTE:,.2f} MB"
