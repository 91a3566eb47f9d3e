"""The verbs ``profile``, ``merge``, ``sweep`` and ``causes`` on a Trainer's processes, and the files of ``predict``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from act_lightning.callbacks.fisher import FisherInformation
from act_lightning.callbacks.injection import MaskedTaskVectorInjection, run_seed
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.checkpoints.files import write_file
from act_lightning.cli.merge import Merge
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.evaluator import gather_lists
from act_lightning.evaluation.results import PREDICTED
from act_lightning.module import AbilityTransferModule
from act_lightning.planning.checks import Run
from act_lightning.profiling.measurement import find_target
from act_lightning.redaction import REDACTED
from act_lightning.scorers.activation import Activation
from act_lightning.scorers.scorer import Scorer
from act_lightning.scores import scores_folder
from act_lightning.sweep.sweep_settings import ACT
from act_lightning.transfer.preparation import TransferPlan, prepare
from act_lightning.transfer.summary import describe_masks


@dataclass(frozen=True)
class TrainerRun(Run):
    """A run whose sections a Trainer can call."""

    model: AbilityTransferModule
    data: AbilityDataModule
    profiler: ActivationDifferenceProfiler
    transfer: MaskedTaskVectorInjection


def run_profile(trainer: L.Trainer, run: TrainerRun) -> None:
    """Measure scores, and say what a transfer would select if its mask has decided how many samples are read."""
    _run_measurements(trainer, run)
    scorer = run.transfer.settings.scorer
    rank_zero_info(f"scores written to {scores_folder(Path(trainer.default_root_dir), scorer or Activation())}")
    if run.profiler.stop_when_stable is not None and scorer is not None and trainer.is_global_zero:
        plan = replace(_plan(trainer, run), scores=scores_folder(Path(trainer.default_root_dir), scorer))
        rank_zero_info("\n".join(describe_masks(plan, prepare(plan))))


def _plan(trainer: L.Trainer, run: TrainerRun) -> TransferPlan:
    target = find_target(run.model, None, None)
    root, channels, digests = Path(trainer.default_root_dir), target.inventory(), target.digests()
    return run.transfer.plan(root, run.sources, channels, digests, target.folder)


def _run_measurements(trainer: L.Trainer, run: TrainerRun, scores: bool = True) -> None:
    """Measure the scores that no saved file holds, unless ``scores`` is false, and the method's Fisher information."""
    scorers = [run.transfer.settings.scorer or Activation()] if scores else []
    _on_all_processes(trainer, partial(_measure, trainer, run, scorers, run.transfer.settings.needs_fisher))


def _measure(
    trainer: L.Trainer, run: TrainerRun, scorers: Sequence[Scorer], fisher: bool, evaluates: bool = False
) -> None:
    """On one process, set up the data that is needed, and measure scores and Fisher information."""
    needs_samples = fisher or any(scorer.needs_samples for scorer in scorers)
    trainer.strategy.connect(run.model)  # as Trainer.fit does; ModelParallelStrategy gives the module its mesh
    trainer.strategy.setup_environment()
    if needs_samples or evaluates:
        run.data.trainer = trainer
        if not needs_samples:
            trainer.state.fn = TrainerFn.TESTING  # makes the data module leave out the abilities
        if trainer.local_rank == 0:
            run.data.prepare_data()
        trainer.strategy.barrier("data prepared")
        run.data.setup("fit" if needs_samples else "test")
    for scorer in scorers:
        run.profiler.profile(trainer, run.model, run.data, replace(run.transfer.settings, selection=scorer))
    if fisher:
        FisherInformation(run.sources).gather(trainer, run.model, run.data)


def run_merge(trainer: L.Trainer, run: TrainerRun, recipe: str) -> None:
    """Profile where scores are missing, transfer, and export to ``<default_root_dir>/merged``."""
    root, transfer = Path(trainer.default_root_dir), run.transfer
    target = find_target(run.model, None, None)
    assert target.folder is not None
    if transfer.needs_data or transfer.needs_profiling:
        _run_measurements(trainer, run, transfer.needs_profiling)
    if trainer.is_global_zero:
        plan = _plan(trainer, run)
        prepared = prepare(plan)
        dtype, device = run.model.export_dtype, trainer.strategy.root_device
        rank_zero_info(Merge(root, target.folder, plan, prepared, recipe, dtype, device, run.overwrite).write())


def run_sweep(trainer: L.Trainer, run: TrainerRun, recipe: str) -> None:
    """Profile where scores are missing, evaluate every point of a sweep, and write the results."""
    from act_lightning.sweep.finalize import finalize  # Optuna and matplotlib take seconds to import
    from act_lightning.sweep.runner import Sweep

    assert run.sweep is not None
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if run.sweep.fit and trainer.world_size > 1 and environment and environment.creates_processes_externally:
        problem = "must not be set where torchrun or Slurm starts the processes, because every fit starts its own"
        hint = "Start `sweep` as one process with the same trainer.devices."
        raise ActError(ConfigIssue("sweep.fit", True, problem, hint))
    if run.sweep.fit and REDACTED in recipe:
        problem = "must not be set where the config holds a secret, which the fits of a sweep read from no file"
        raise ActError(ConfigIssue("sweep.fit", True, problem, "Give the secret in the environment."))
    target, root = find_target(run.model, None, None), Path(trainer.default_root_dir)
    saved_scores = None if run.transfer.scores is None else Path(run.transfer.scores)
    settings = run.transfer.settings
    sweep = Sweep(run.sweep, settings, run.sources, run.data, target, root, saved_scores, run_seed(), recipe)

    def explore() -> None:
        scorers = [
            scorer
            for method, scorer in sweep.settings.scorers(sweep.transfer).items()
            if method != ACT or saved_scores is None
        ]
        fisher = run.transfer.settings.needs_fisher and ACT in sweep.settings.compared
        _measure(trainer, run, scorers, fisher, evaluates=True)
        sweep.explore(trainer)

    for message in sweep.ignored_settings():
        rank_zero_info(message)
    _on_all_processes(trainer, explore)
    if trainer.is_global_zero:
        finalize(sweep, trainer.strategy.root_device)


def run_causes(trainer: L.Trainer, run: TrainerRun) -> None:
    """Profile where scores are missing, then intervene on the target's channels, on held-out samples."""
    from act_lightning.analysis.causal_check import (
        FOLDER,
        check_causes,
        print_causes,  # only this verb needs them
    )

    assert run.causes is not None
    target, root, causes = find_target(run.model, None, None), Path(trainer.default_root_dir), run.causes
    held_out = causes.data(run.data, list(dict.fromkeys(name for source in run.sources for name in source.abilities)))

    def intervene() -> None:
        scorers = [run.transfer.settings.scorer or Activation()] if run.transfer.needs_profiling else []
        _measure(trainer, run, scorers, fisher=False)
        plan = _plan(trainer, run)
        plan = replace(plan, settings=replace(plan.settings, method="task_arithmetic"))  # any: nothing is merged
        prepared = prepare(plan)
        if trainer.is_global_zero:
            rank_zero_info("\n".join(describe_masks(plan, prepared)))
        results = check_causes(trainer, target, prepared, held_out, causes)
        if trainer.is_global_zero:
            print_causes(results)

    _on_all_processes(trainer, intervene)
    rank_zero_info(f"causes written to {root / FOLDER}")


def _on_all_processes(trainer: L.Trainer, work: Callable[[], None]) -> None:
    """Run ``work`` as the Trainer runs its own loops: on every process that the strategy launches."""
    launcher = trainer.strategy.launcher
    if launcher is None:
        work()
    else:
        launcher.launch(work, trainer=trainer)


def write_predictions(trainer: L.Trainer, run: TrainerRun, predictions: Sequence[Any]) -> None:
    """Write ``predictions/<set>.jsonl`` where the model's evaluations stand.

    It holds row, prompt, prediction and reference of every row, in the rows' order.
    """
    names = run.data.evaluation_names
    # Trainer.predict returns a list of batches per set, or just the batches where there is one set.
    per_set = predictions if len(names) > 1 else [predictions]
    rows_by_set = gather_lists(
        {name: [row for batch in batches for row in batch] for name, batches in zip(names, per_set, strict=True)}
    )
    if trainer.is_global_zero:
        model = run.model.evaluated_model()
        folder = (model.folder(Path(trainer.default_root_dir) / "evaluations") / PREDICTED).parent
        write_file(folder.parent / PREDICTED, json.dumps({"model": model.name, "digest": model.digest}) + "\n")
        for name, rows in rows_by_set.items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in sorted(rows, key=lambda row: row["row"])]
            write_file(folder / f"{name}.jsonl", "".join(lines))
        rank_zero_info(f"predictions written to {folder}")
