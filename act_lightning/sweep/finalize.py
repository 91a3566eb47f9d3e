"""After all points are evaluated: fine-tune them if that is configured, then write all results."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.reader import load_on_device
from act_lightning.console import Console, progress_bar
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.evaluator import score_model
from act_lightning.evaluation.results import ROLES
from act_lightning.evaluation.tables import ItemScores, csv_table, markdown_table, rich_table
from act_lightning.sweep.results import (
    BEST,
    MethodResult,
    Outcome,
    compare_methods,
    equal_points,
    pareto_front,
    reference_outcome,
    role_label,
)
from act_lightning.sweep.runner import Stopwatch, Sweep
from act_lightning.sweep.study import Suggestion, TrialStore
from act_lightning.sweep.sweep_settings import TARGET, Point
from act_lightning.sweep.transfers import Transfers, read_recipe
from act_lightning.sweep.writing import (
    METHODS_HEAD,
    SweepFindings,
    conclusions,
    methods_cells,
    methods_rows,
    outcome_row,
    results_as_json,
    write_page,
)

# Environment variables that make a process one of several; each fit starts processes of its own.
_LAUNCH_VARIABLES = (
    *("LOCAL_RANK", "RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
)


def finalize(sweep: Sweep, device: torch.device) -> None:
    """Fine-tune points if that is configured; write results, comparison, best config and page; print a summary.

    Raises:
        ActError: If a fit fails, or something cannot be written.
    """
    settings, transfers = sweep.settings, Transfers(sweep.plan(), sweep.score_folders())
    with sweep.open_store() as store:
        if settings.fit:
            _fine_tune_all(sweep, store, transfers, device)
        target, outcomes = store.target(), store.outcomes()
        tuned_target = store.target(tuned=True) if settings.fit else None
        tuned = store.outcomes(tuned=True) if settings.fit else []
    assert target is not None, "the target is evaluated first"
    methods = compare_methods(outcomes, target, settings, sweep.transfer)
    points = list(outcomes)
    if tuned_target is not None:
        methods += [MethodResult("", tuned_target), *compare_methods(tuned, target, settings, sweep.transfer)]
        points.append(tuned_target)
    points += tuned
    findings = SweepFindings(target, tuned or outcomes, settings.keep_within, methods, tuned_target or target)
    best = findings.best
    at_best: dict[str, Outcome] = {}  # or, where no point keeps enough, where the method is compared
    for method in methods:
        if BEST in method.basis or method.outcome.point.method not in at_best:
            at_best[method.outcome.point.method] = method.outcome

    rows = [outcome_row(outcome, target) for outcome in (target, *points)]
    cells = methods_cells(methods, target)
    write_file(sweep.folder / "results.csv", csv_table(rows))
    write_file(sweep.folder / "results.json", results_as_json(rows, best, pareto_front(points)))
    write_file(sweep.folder / "methods.csv", csv_table(methods_rows(methods, target)))
    write_file(sweep.folder / "methods.md", markdown_table(METHODS_HEAD, cells))
    path = sweep.folder / "best.yaml"
    if best is None:
        path.unlink(missing_ok=True)  # of an earlier sweep
    else:
        write_file(path, _best_config(sweep, transfers, best, target, path))
    page, console = write_page(sweep.folder / "report", findings), Console()
    title = (
        f"{' and '.join(role_label(target.roles, role) for role in ROLES)} in %, below them 95 % intervals, and items "
        "+gained −lost against the target"
    )
    lines = []
    for *texts, keep, recover, keep_changes, recover_changes in cells:
        lines.append([*texts, f"{keep}\n{keep_changes}".rstrip(), f"{recover}\n{recover_changes}".rstrip()])
    console.print(rich_table(title, METHODS_HEAD[:-2], lines, left=2, wrap=2))
    for line in (line for outcome in at_best.values() for line in transfers.describe(outcome.point, outcome.rounding)):
        console.print(line, soft_wrap=True)
    for sentence in conclusions(findings):
        console.print(sentence, soft_wrap=True)
    console.print(f"written to {sweep.folder}; figures: {page}", soft_wrap=True)


def _best_config(sweep: Sweep, transfers: Transfers, best: Outcome, target: Outcome, path: Path) -> str:
    """The config of the best point, with the commands that run it."""
    point = best.point
    lines = (
        f"The best point of a sweep: {point.method}, λ {point.scale:.6g}, p {point.ratio:.6g}; "
        f"{best.share:.2%} of parameters",
        f"keep: {100 * best.keep:.1f} % (target: {100 * target.keep:.1f} %)",
        f"recover: {100 * best.recover:.1f} % (target: {100 * target.recover:.1f} %)",
        "",
        f"  python -m act_lightning merge --config {path}",
        f"  python -m act_lightning fit   --config {path}",
    )
    config = transfers.override(replace(point, tuned=False)).apply_to(read_recipe(sweep.recipe))
    comment = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    return comment + str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _fine_tune_all(sweep: Sweep, store: TrialStore, transfers: Transfers, device: torch.device) -> None:
    """Fine-tune the target and every point, then those where the methods are compared."""

    def fine_tune(outcomes: Sequence[Outcome]) -> None:
        for outcome in progress_bar(outcomes, desc="fine-tuning", unit="point"):
            tuned = _fine_tune(sweep, transfers, outcome, device)
            store.record(Suggestion(tuned.point), tuned)

    target = store.target()
    assert target is not None, "the target is evaluated first"
    done = {replace(outcome.point, tuned=False) for outcome in store.outcomes(tuned=True)}
    missing_target = [] if store.target(tuned=True) is not None else [target]
    fine_tune([*missing_target, *(outcome for outcome in store.outcomes() if outcome.point not in done)])

    tuned = store.outcomes(tuned=True)
    reference = reference_outcome(tuned, target, sweep.settings)
    by_method = equal_points(reference, sweep.settings, sweep.transfer)
    known = {outcome.point for outcome in tuned}
    missing = dict.fromkeys(point for points in by_method.values() for point in points.values() if point not in known)
    nothing = ItemScores({})  # these points were not evaluated without fine-tuning
    fine_tune([Outcome(point, target.roles, nothing, transfers.parameter_share(point)) for point in missing])


def _fine_tune(sweep: Sweep, transfers: Transfers, before: Outcome, device: torch.device) -> Outcome:
    """Fine-tune after a transfer, and evaluate the model; the target itself stands for plain fine-tuning."""
    point, stopwatch = replace(before.point, tuned=True), Stopwatch(device)
    folder = sweep.folder / "points" / point.name
    with stopwatch.timing("fitting"):
        if not (folder / "model" / "config.json").is_file():
            write_file(folder / "config.yaml", _fit_config(sweep, transfers, point, folder))
            _run_fit(point, folder)
    model = load_on_device(folder / "model", sweep.target.dtype, device)
    with stopwatch.timing("evaluating"):
        scores = score_model(sweep.data, model, sweep.data.evaluation_tokens)
    if not sweep.settings.keep_models:
        shutil.rmtree(folder / "model")
    return Outcome(point, before.roles, scores, before.share, stopwatch.seconds)


def _fit_config(sweep: Sweep, transfers: Transfers, point: Point, folder: Path) -> str:
    """The config of a point's own `fit`, which leaves out callbacks that evaluate: the sweep evaluates by itself."""
    recipe = read_recipe(sweep.recipe)
    config = {**recipe, "profile": {**recipe["profile"], "sources": None}}
    needs_scores = False
    if point.method != TARGET and point.scale:  # at λ = 0 nothing is transferred: plain fine-tuning
        override = transfers.override(replace(point, tuned=False))
        config, needs_scores = override.apply_to(recipe), override.settings.scorer is not None
    transfer = {key: value for key, value in config.get("transfer", {}).items() if key != "scores"}
    scores = sweep.score_folders().get(point.method)
    if needs_scores and scores is not None:
        transfer["scores"] = str(scores)
    trainer = {**recipe["trainer"], "default_root_dir": str(folder)}
    callbacks = trainer.get("callbacks") or []
    other_callbacks, saves_checkpoints = [], False
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        class_path = str(callback.get("class_path", "") if isinstance(callback, dict) else callback)
        if not class_path.endswith(("TransferComparison", "AnswerEvaluation")):
            other_callbacks.append(callback)
            saves_checkpoints |= "Checkpoint" in class_path
    trainer["callbacks"] = other_callbacks or None
    if not saves_checkpoints:
        trainer["enable_checkpointing"] = False  # a fit that was killed starts over
    config = {**config, "transfer": transfer, "trainer": trainer}
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _run_fit(point: Point, folder: Path) -> None:
    """Run `fit` in a process of its own, whose memory is free again afterwards."""
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCH_VARIABLES}
    command = [sys.executable, "-m", "act_lightning", "fit", "--config", str(folder / "config.yaml")]
    command.append("--overwrite")  # what a fit that was killed has left
    log = folder / "fit.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        label = "plain fine-tuning" if point.method == TARGET else point.name
        problem = f"must end in a model, and {label} did not ({lines[-1] if lines else 'no message'})"
        raise ActError(ConfigIssue("sweep.fit", True, problem, f"Read {log}, and start the sweep again: it continues."))
