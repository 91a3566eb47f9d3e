"""What a run will do and what will go wrong, from configs and headers only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from act_lightning.channels import inventory
from act_lightning.checkpoints import config_differences, is_weightless, meta_model
from act_lightning.errors import ActError
from act_lightning.planning.checks import distinct, output_place_faults, setting_faults, transfer_faults
from act_lightning.planning.forecast import disk_forecast, memory_forecast, space_problems
from act_lightning.planning.models import Models, look
from act_lightning.planning.problem import Level, Problem, from_fault
from act_lightning.planning.run import Run
from act_lightning.planning.selection import selection_counts
from act_lightning.planning.training import training_problems


@dataclass
class Plan:
    """What will happen.

    Attributes:
        channels: ``total``, and ``per_ability``: how many channels p selects; ``None`` where only the scores can tell.
        parameters: ``total`` number of the target's elements, all of which are fine-tuned.
        memory: Bytes of the pair in profiling, and of weights, gradients and optimizer state in training.
        disk: Bytes that are written, and that are free.
        problems: What is wrong or worth knowing: errors, then warnings, then notes.
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
    models, plan = look(run), Plan()
    faults = setting_faults(run, "plan") + models.faults + transfer_faults(run, models)
    faults += output_place_faults(run, models, "fit")
    plan.problems = [from_fault(fault) for fault in distinct(faults)]
    plan.problems += training_problems(run)
    if models.target is not None:
        plan.problems += _model_notes(run, models, models.target)
        _forecast(plan, run, models, models.target)
    plan.problems.sort(key=lambda problem: get_args(Level).index(problem.level))
    return plan


def _forecast(plan: Plan, run: Run, models: Models, target: Path) -> None:
    try:
        channels = models.channels or inventory(meta_model(target))
        plan.parameters = {"total": channels.parameters}
        plan.memory = memory_forecast(run, channels.parameters, target)
        plan.disk = disk_forecast(run, channels, target)
    except ActError:
        return  # told already, or no matter: plain fine-tuning needs no channels
    plan.channels = {"total": channels.total, "per_ability": selection_counts(run, channels)}
    plan.problems += space_problems(plan.disk)


def _model_notes(run: Run, models: Models, target: Path) -> list[Problem]:
    """Missing weights, and values in which the configs of the pair differ."""
    names = {f"profile.sources[{i}].model": (run.sources[i].model, folder) for i, folder in models.sources.items()}
    found = []
    for setting, (name, folder) in {"model.target": (run.model.target, target), **names}.items():
        if is_weightless(folder):
            message = f"{folder} holds a config but no weights, so only shapes were compared"
            here = Path(name).expanduser().is_dir()
            remedy = "Put the weights there before the run." if here else "The run will fetch them."
            found.append(Problem("note", setting, message, remedy))
    for setting, (_, folder) in names.items():
        remedy = "Nothing to do: the target's config is kept. The paper's own pair differs in such values."
        differences = config_differences(target, folder)
        found += [Problem("note", setting, str(difference), remedy) for difference in differences]
    return found
