"""After all points: fine-tune where that is asked for, then write everything, the best point as a config."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from tqdm.auto import tqdm

from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.models import load_model
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.sweep.configs import best_config, fit_config, read_recipe
from act_lightning.sweep.points import Point
from act_lightning.sweep.results import (
    Compared,
    Outcome,
    best_point,
    comparison,
    equal_points,
    pareto_front,
    reference_of,
)
from act_lightning.sweep.runner import Sweep
from act_lightning.sweep.settings import TARGET
from act_lightning.sweep.study import Suggested, TrialStore
from act_lightning.sweep.transfers import Transfers
from act_lightning.sweep.workers import Questions, Watch
from act_lightning.sweep.writing import (
    SweepFindings,
    as_csv,
    as_json,
    compared_markdown,
    compared_rows,
    compared_table,
    rows_of,
    sentence,
    write_page,
)

# What tells a process that it is one of several; a fit starts its own.
_OF_A_LAUNCH = (
    *("LOCAL_RANK", "RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
)


@dataclass(frozen=True)
class Fits:
    """Fine-tunes points and evaluates the results.

    Attributes:
        folder: Where each point has a folder.
        config: The config of a point's fit as YAML, for its folder.
        data: The data module, set up for testing.
        dtype: Precision in which models are evaluated.
        device: Where they are evaluated.
        keep_models: Whether models stay on the disk.
    """

    folder: Path
    config: Callable[[Point, Path], str]
    data: AbilityDataModule
    dtype: torch.dtype
    device: torch.device
    keep_models: bool

    def go(self, outcomes: Sequence[Outcome], record: Callable[[Outcome], None]) -> None:
        """Fine-tune after every transfer, and tell of each result.

        Args:
            outcomes: What was found without fine-tuning; that of the target itself stands for plain fine-tuning.
            record: Is told of each result when it is there.
        """
        questions = Questions(self.data)
        for before in tqdm(outcomes, desc="fine-tuning", unit="point"):
            record(self._fitted(before, questions))

    def _fitted(self, before: Outcome, questions: Questions) -> Outcome:
        point, watch = replace(before.point, tuned=True), Watch(self.device)
        folder = self.folder / point.name
        start = time.perf_counter()
        if not (folder / "model" / "config.json").is_file():
            self._fit(point, folder)
        watch.seconds["fitting"] = time.perf_counter() - start
        model = load_model(folder / "model", self.dtype, self.device)
        with watch.timing("evaluating"):
            right = questions.ask(model)
        if not self.keep_models:
            shutil.rmtree(folder / "model")
        return Outcome(point, before.roles, right, before.share, watch.seconds)

    def _fit(self, point: Point, folder: Path) -> None:
        """Run `fit` in a process of its own, whose memory is free again afterwards."""
        write_file(folder / "config.yaml", self.config(point, folder))
        environment = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCH}
        command = [sys.executable, "-m", "act_lightning", "fit", "--config", str(folder / "config.yaml")]
        log = folder / "fit.log"
        with log.open("w", encoding="utf-8") as said:
            done = subprocess.run(command, env=environment, stdout=said, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            what = "plain fine-tuning" if point.method == TARGET else point.name
            problem = f"must end in a model, and {what} did not ({lines[-1] if lines else 'no message'})"
            raise ActError(
                ConfigIssue("sweep.fit", True, problem, f"Read {log}, and start the sweep again: it continues.")
            )


def finalize(sweep: Sweep, device: torch.device) -> None:
    """Fine-tune points if that is asked for; write results, comparison, best config and page; print what counts.

    Args:
        sweep: A sweep whose points were evaluated.
        device: Where fine-tuned models are evaluated.

    Raises:
        ActError: If a fit fails, or something cannot be written.
    """
    transfers = Transfers(sweep.beginning())
    with ExitStack() as kept:
        ledger = sweep.ledger(kept)
        if sweep.settings.fit:
            _tune(sweep, ledger, transfers, device)
        target, plain = ledger.target(), ledger.outcomes()
        tuned_target = ledger.target(tuned=True) if sweep.settings.fit else None
        tuned = ledger.outcomes(tuned=True) if sweep.settings.fit else []
    assert target is not None, "the target is evaluated first"
    compared = comparison(plain, target, sweep.settings, sweep.transfer)
    if tuned_target is not None:
        compared += [Compared("", tuned_target), *comparison(tuned, target, sweep.settings, sweep.transfer)]
    best = best_point(tuned or plain, target, sweep.settings.keep_within)
    everything = [*plain, *([] if tuned_target is None else [tuned_target]), *tuned]
    _write(sweep.folder, everything, target, best, compared)
    _write_best(sweep, transfers, best, target)
    found = SweepFindings(target, tuned or plain, best, sweep.settings.keep_within, compared)
    page, console = write_page(sweep.folder / "report", found), Console()
    console.print(compared_table(compared, target))
    console.print(sentence(found), highlight=False)
    console.print(f"written to {sweep.folder}; figures: {page}", highlight=False, soft_wrap=True)


def _write(
    folder: Path, outcomes: list[Outcome], target: Outcome, best: Outcome | None, compared: list[Compared]
) -> None:
    rows = rows_of([target, *outcomes], target)
    write_file(folder / "results.csv", as_csv(rows))
    write_file(folder / "results.json", as_json(rows, best, pareto_front(outcomes)))
    write_file(folder / "methods.csv", as_csv(compared_rows(compared, target)))
    write_file(folder / "methods.md", compared_markdown(compared, target))


def _write_best(sweep: Sweep, transfers: Transfers, best: Outcome | None, target: Outcome) -> None:
    place = sweep.folder / "best.yaml"
    if best is None:
        place.unlink(missing_ok=True)  # of an earlier sweep
    else:
        moved = transfers.moved(replace(best.point, tuned=False))
        write_file(place, best_config(read_recipe(sweep.recipe), moved, best, target, place))


def _tune(sweep: Sweep, ledger: TrialStore, transfers: Transfers, device: torch.device) -> None:
    """Fine-tune the target, every point, and then what the methods are compared at."""
    fits = Fits(
        folder=sweep.folder / "points",
        config=lambda point, folder: _fit_config(sweep, transfers, point, folder),
        data=sweep.data,
        dtype=sweep.target.dtype,
        device=device,
        keep_models=sweep.settings.keep_models,
    )

    def record(outcome: Outcome) -> None:
        if outcome.point.method == TARGET:
            ledger.record_target(outcome)
        else:
            ledger.finish(Suggested(outcome.point), outcome)

    target = ledger.target()
    assert target is not None, "the target is evaluated first"
    done = {replace(one.point, tuned=False) for one in ledger.outcomes(tuned=True)}
    first = [] if ledger.target(tuned=True) is not None else [target]
    fits.go([*first, *(one for one in ledger.outcomes() if one.point not in done)], record)
    tuned = ledger.outcomes(tuned=True)
    equals = equal_points(reference_of(tuned, target, sweep.settings), sweep.settings, sweep.transfer)
    known = {one.point for one in tuned}
    missing = dict.fromkeys(point for its in equals.values() for point in its.values() if point not in known)
    fits.go([Outcome(point, target.roles, {}, transfers.share(point)) for point in missing], record)


def _fit_config(sweep: Sweep, transfers: Transfers, point: Point, folder: Path) -> str:
    moved = None if point.method == TARGET else transfers.moved(replace(point, tuned=False))
    return fit_config(read_recipe(sweep.recipe), moved, folder, sweep.folders_of_scores().get(point.method))
