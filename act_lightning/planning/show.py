"""A plan on the terminal, or as one JSON object."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from act_lightning.planning.plan import Plan

_COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}
_GIGABYTE = 1e9


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
        table.add_row("channels", f"{plan.channels['total']:,}")
        table.add_row("parameters", f"{plan.parameters['total']:,}")
        for ability, count in plan.channels["per_ability"].items():
            table.add_row(f"selected for {ability}", "as the scores say" if count is None else f"{count:,}")
        for title, figures in (("memory", plan.memory), ("disk", plan.disk)):
            for name, size in figures.items():
                table.add_row(f"{title}: {name}", f"{size / _GIGABYTE:,.2f} GB")
        console.print(table)
    for problem in plan.problems:
        console.print(f"[{_COLORS[problem.level]}]{problem.level}:[/]", end=" ")
        console.print(str(problem), markup=False, soft_wrap=True)
    if not plan.problems:
        console.print("no problems found")
