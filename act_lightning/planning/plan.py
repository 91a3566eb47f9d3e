"""What a run will do and what will go wrong, from configs and headers only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from act_lightning.callbacks import AbilitySource
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints import config_differences, is_weightless, locate, meta_model, sibling_faults
from act_lightning.errors import ActError
from act_lightning.masks import candidates, share_of
from act_lightning.planning.checks import run_faults
from act_lightning.planning.forecast import disk_forecast, memory_forecast
from act_lightning.planning.problem import Problem, from_fault
from act_lightning.planning.run import Run
from act_lightning.planning.updates import update_problems

_Result = TypeVar("_Result")


@dataclass
class Plan:
    """What will happen.

    Attributes:
        channels: ``total``, and ``per_ability``: how many channels p selects; ``None`` where only the scores can tell.
        parameters: ``total`` number of the target's elements, all of which are fine-tuned.
        memory: Bytes of the pair in profiling, and of weights, gradients and optimizer state in training.
        disk: Bytes that are written, and that are free.
        problems: What is wrong or worth knowing.
    """

    channels: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists, strings and numbers."""
        return asdict(self)

    @property
    def has_error(self) -> bool:
        """Whether a run would fail."""
        return any(problem.level == "error" for problem in self.problems)


def make_plan(run: Run) -> Plan:
    """Plan a run; it never builds a Trainer or opens weights, and mistakes become problems of the plan."""
    plan = Plan(problems=[from_fault(fault) for fault in run_faults(run, "plan")])
    target = _attempt(plan, lambda: locate(run.model.target, run.model.revision, weights=False))
    if target is None:
        return plan
    _note_missing_weights(plan, target, "model.target")
    channels = _attempt(plan, lambda: inventory(meta_model(target)))
    sources = {i: folder for i, source in enumerate(run.sources) if (folder := _source_folder(plan, i, source))}
    for i, folder in sources.items():
        _compare(plan, target, folder, f"profile.sources[{i}].model")
    plan.problems += update_problems(run)
    if channels is not None:
        plan.channels = {"total": channels.total, "per_ability": _attempt(plan, lambda: _counts(run, channels)) or {}}
        plan.parameters = {"total": channels.parameters}
        plan.memory = memory_forecast(run, channels.parameters, target)
        plan.disk = disk_forecast(run, channels, target)
    return plan


def _attempt(plan: Plan, work: Callable[[], _Result]) -> _Result | None:
    """The result of ``work``, or ``None`` and a problem of the plan."""
    try:
        return work()
    except ActError as error:
        known = {(problem.setting, problem.message) for problem in plan.problems}
        new = [from_fault(fault) for fault in error.faults]
        plan.problems += [problem for problem in new if (problem.setting, problem.message) not in known]
        return None


def _source_folder(plan: Plan, number: int, source: AbilitySource) -> Path | None:
    setting = f"profile.sources[{number}].model"
    folder = _attempt(plan, lambda: locate(source.model, source.revision, setting, weights=False))
    if folder is not None:
        _note_missing_weights(plan, folder, setting)
    return folder


def _note_missing_weights(plan: Plan, folder: Path, setting: str) -> None:
    if is_weightless(folder):
        message = f"{folder} holds a config but no weights, so only shapes were compared"
        plan.problems.append(Problem("note", setting, message, "Fetch the weights before the run."))


def _compare(plan: Plan, target: Path, source: Path, setting: str) -> None:
    plan.problems += [
        from_fault(fault) for fault in _attempt(plan, lambda: sibling_faults(target, source, setting)) or []
    ]
    for difference in _attempt(plan, lambda: config_differences(target, source)) or []:
        remedy = "Nothing to do: the target's config is kept. The paper's own pair differs in such values."
        plan.problems.append(Problem("note", setting, str(difference), remedy))


def _counts(run: Run, channels: ChannelInventory) -> dict[str, int | None]:
    """How many channels each ability's mask selects; keyed by source and ability where a name occurs twice."""
    names = [ability for source in run.sources for ability in source.abilities]
    return {
        ability if names.count(ability) == 1 else f"{source.label}/{ability}": _count(run, source, channels)
        for source in run.sources
        for ability in source.abilities
    }


def _count(run: Run, source: AbilitySource, channels: ChannelInventory) -> int | None:
    settings = run.transfer.settings
    ratio: float | Fraction = settings.ratio if source.ratio is None else source.ratio
    allowed = candidates(channels, settings.exclude)
    if settings.selection == "all":
        return int(allowed.sum())
    if settings.share == "parameters":
        return None  # the scores tell how many channels fill that many parameters
    if settings.scope == "module":
        return sum(share_of(int(allowed[span].sum()), ratio) for _, span in channels.spans())
    return share_of(int(allowed.sum()), ratio)
