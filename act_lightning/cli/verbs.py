"""The verbs that need a Trainer's processes but no training, such as ``profile``; and what ``predict`` writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from act_lightning.analysis.causal_check import FOLDER as CAUSES
from act_lightning.analysis.causal_check import check_causes, print_causes
from act_lightning.callbacks.fisher import FisherInformation
from act_lightning.callbacks.injection import run_seed
from act_lightning.checkpoints.export import output_issues
from act_lightning.checkpoints.files import write_file
from act_lightning.cli.disk_merge import merge_to_disk
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.evaluation.evaluator import gather_lists
from act_lightning.planning.run import Run
from act_lightning.profiling.target import find_target
from act_lightning.scorers.activation import Activation
from act_lightning.scorers.scorer import Scorer
from act_lightning.sweep.settings import ACT, SweepSettings
from act_lightning.transfer.importance import FOLDER
from act_lightning.transfer.preparation import prepare

_LOGS, _EVENTS = "logs/version_*", "events.out.tfevents.*"


def run_profile(trainer: L.Trainer, run: Run, scores: bool = True) -> None:
    """Measure the scores of every ability of every source that saved scores do not answer, and what the method needs.

    Args:
        trainer: Its processes and devices are used.
        run: The run.
        scores: Whether scores are to be measured.
    """
    scorers = [run.transfer.scorer or Activation()] if scores else []
    _on_all_processes(trainer, partial(_measure, trainer, run, scorers, run.transfer.needs_fisher))


def _measure(trainer: L.Trainer, run: Run, scorers: Sequence[Scorer], fisher: bool, evaluates: bool = False) -> None:
    """Set up what data is needed, and measure what is asked for, on one of the processes."""
    reads = fisher or any(scorer.needs_samples for scorer in scorers)
    trainer.strategy.setup_environment()
    if reads or evaluates:
        _set_up_data(trainer, run, "fit" if reads else "test")
    for scorer in scorers:
        settings = replace(run.transfer.settings, selection=scorer)
        run.profiler.profile(trainer, run.model, run.data, settings)
    if fisher:
        FisherInformation(run.sources).gather(trainer, run.model, run.data)


def _set_up_data(trainer: L.Trainer, run: Run, stage: str) -> None:
    run.data.trainer = trainer
    if stage == "test":
        trainer.state.fn = TrainerFn.TESTING  # the data module asks what is needed: no abilities
    if trainer.local_rank == 0:
        run.data.prepare_data()
    trainer.strategy.barrier("data prepared")
    run.data.setup(stage)


def run_merge(trainer: L.Trainer, run: Run, recipe: str) -> None:
    """Profile where scores are missing, transfer, and export to ``<default_root_dir>/merged``."""
    root = Path(trainer.default_root_dir)
    target = find_target(run.model, None, None)
    assert target.folder is not None
    raise_if_any(output_issues(root / "merged", target.folder, "trainer.default_root_dir"))
    if run.transfer.needs_data or run.transfer.needs_profiling:
        run_profile(trainer, run, run.transfer.needs_profiling)
    if not trainer.is_global_zero:
        return
    scores = run.transfer.scores_of(root)
    known = run_seed(), target.digests(), target.folder, root / FOLDER
    prepared = prepare(run.sources, target.inventory(), run.transfer.settings, scores, *known)
    told = merge_to_disk(root, target.folder, prepared, recipe, run.model.export_dtype, trainer.strategy.root_device)
    rank_zero_info(told)


def run_sweep(trainer: L.Trainer, run: Run, recipe: str) -> None:
    """Profile where scores are missing, evaluate every point of a sweep, and write what was found.

    Args:
        trainer: Its processes and devices are used.
        run: The run.
        recipe: The run's config as YAML.
    """
    from act_lightning.sweep.finalize import finalize  # Optuna and matplotlib take seconds to import
    from act_lightning.sweep.runner import Sweep

    assert run.sweep is not None
    target = find_target(run.model, None, None)
    given = None if run.transfer.scores is None else Path(run.transfer.scores)
    root = Path(trainer.default_root_dir)
    walk = Sweep(run.sweep, run.transfer.settings, run.sources, run.data, target, root, given, run_seed(), recipe)

    def explore() -> None:
        fisher = run.transfer.needs_fisher and ACT in walk.settings.compared
        scorers = walk.settings.scorers(walk.transfer)
        due = [one for method, one in scorers.items() if method != ACT or given is None]
        _measure(trainer, run, due, fisher, evaluates=True)
        walk.explore(trainer)

    raise_if_any(_fit_issues(trainer, run.sweep))
    for told in walk.overridden():
        rank_zero_info(told)
    _on_all_processes(trainer, explore)
    if trainer.is_global_zero:
        finalize(walk, trainer.strategy.root_device)


def _fit_issues(trainer: L.Trainer, settings: SweepSettings) -> list[ConfigIssue]:
    """The issue of fits that would have to be started among processes that something else has started."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not settings.fit or trainer.world_size == 1 or not environment or not environment.creates_processes_externally:
        return []
    problem = "must not be asked for where torchrun or Slurm starts the processes, for every fit starts its own"
    return [ConfigIssue("sweep.fit", True, problem, "Start `sweep` as one process with the same trainer.devices.")]


def run_causes(trainer: L.Trainer, run: Run) -> None:
    """Profile where scores are missing, then intervene on the target's channels, on held-out samples."""
    assert run.causes is not None
    target, root = find_target(run.model, None, None), Path(trainer.default_root_dir)
    held_out = run.causes.data(run.data, list(dict.fromkeys(name for one in run.sources for name in one.abilities)))

    def ask() -> None:
        assert run.causes is not None
        scorers = [run.transfer.scorer or Activation()] if run.transfer.needs_profiling else []
        _measure(trainer, run, scorers, fisher=False)
        known = run_seed(), target.digests(), target.folder
        settings = replace(run.transfer.settings, method="task_arithmetic")  # which plays no part: nothing is merged
        prepared = prepare(run.sources, target.inventory(), settings, run.transfer.scores_of(root), *known)
        found = check_causes(trainer, target, prepared, held_out, run.causes)
        if trainer.is_global_zero:
            print_causes(found)

    _on_all_processes(trainer, ask)
    rank_zero_info(f"causes written to {root / CAUSES}")


def write_predictions(trainer: L.Trainer, run: Run, predictions: Sequence[Any]) -> None:
    """Write ``evaluations/<set>.jsonl``: row, prompt, prediction and reference of every row, each once, in their order.

    Args:
        trainer: The Trainer that predicted.
        run: The run.
        predictions: What it returned: of each set a list of batches; without that outer list where there is one set.
    """
    names = run.data.evaluation_names
    of_sets = predictions if len(names) > 1 else [predictions]
    rows = {name: [row for rows in batches for row in rows] for name, batches in zip(names, of_sets, strict=True)}
    found = gather_lists(rows)
    folder = Path(trainer.default_root_dir) / "evaluations"
    if trainer.is_global_zero:
        for name, its in found.items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in sorted(its, key=lambda row: row["row"])]
            write_file(folder / f"{name}.jsonl", "".join(lines))
    rank_zero_info(f"predictions written to {folder}")


@contextmanager
def remove_empty_run(root: Path) -> Iterator[None]:
    """Take back the empty folders of a run that is refused after Lightning has made room for its logs."""
    was_there, earlier = root.is_dir(), set(root.glob(_LOGS))
    try:
        yield
    except ActError:
        folders = set(root.glob(_LOGS))
        for file in (file for folder in folders - earlier if _is_empty_log(folder) for file in folder.glob(_EVENTS)):
            file.unlink(missing_ok=True)
        for folder in (*folders, root / "logs", *([] if was_there else [root])):
            with suppress(OSError):  # it is not empty, or another process was faster
                folder.rmdir()
        raise


def _is_empty_log(folder: Path) -> bool:
    """Whether nothing but TensorBoard's files was begun: the CSV logger writes when the first value comes."""
    return all(file.match(_EVENTS) for file in folder.iterdir())


def _on_all_processes(trainer: L.Trainer, work: Callable[[], None]) -> None:
    """Run ``work`` as the Trainer runs its own loops: on every process that the strategy launches."""
    launcher = trainer.strategy.launcher
    if launcher is None:
        work()
    else:
        launcher.launch(work, trainer=trainer)
