"""A plan on the terminal, or as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from act_lightning.planning.plan import Plan

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
