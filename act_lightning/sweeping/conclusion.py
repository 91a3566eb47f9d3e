"""After all points: fine-tuning where it is asked for, then everything that a sweep writes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from act_lightning.checkpoints import write_file
from act_lightning.sweeping.choice import Compared, best_point, comparison, equal_points, pareto_front, reference_of
from act_lightning.sweeping.fitting import Fits
from act_lightning.sweeping.outcome import Outcome
from act_lightning.sweeping.page import Found, sentence, write_page
from act_lightning.sweeping.points import Point
from act_lightning.sweeping.recipes import best_config, fit_config, read_recipe
from act_lightning.sweeping.running import Sweep
from act_lightning.sweeping.settings import TARGET
from act_lightning.sweeping.study import Ledger, Suggested
from act_lightning.sweeping.transfers import Transfers
from act_lightning.sweeping.writing import as_csv, as_json, compared_markdown, compared_rows, compared_table, rows_of


def conclude(sweep: Sweep, device: torch.device) -> None:
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
    found = Found(target, tuned or plain, best, sweep.settings.keep_within, compared)
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


def _tune(sweep: Sweep, ledger: Ledger, transfers: Transfers, device: torch.device) -> None:
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
