"""An inspection on the terminal, or as one JSON object."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from act_lightning.inspection.inspect import InspectedSet, Inspection
from act_lightning.inspection.leakage import RUN, Overlap
from act_lightning.inspection.samples import colored, legend

_BARS = " ▁▂▃▄▅▆▇█"


def print_inspection(inspection: Inspection, as_json: bool, console: Console | None = None) -> None:
    """Print an inspection.

    Args:
        inspection: What to print.
        as_json: Whether to print one JSON object and nothing else.
        console: Where to print; by default standard output.
    """
    if as_json:
        print(json.dumps(inspection.to_json(), indent=2, ensure_ascii=False))
        return
    console = console or Console(highlight=False)
    console.print(legend())
    for one in inspection.sets:
        _print_samples(one, console)
    console.print()
    for table in (_figures(inspection.sets), _lengths(inspection.sets)):
        console.print(table)
        console.print()
    for overlap in inspection.overlaps:
        console.print("[yellow]warning:[/]", end=" ")
        console.print(warning(overlap), markup=False, soft_wrap=True)
    if not inspection.overlaps:
        console.print("no two sets share more than 1 % of their prompts")


def warning(overlap: Overlap) -> str:
    """What two sets share, as a sentence.

    >>> warning(Overlap("math", "gsm", 3, 2, 0.5, 2)).partition("; ")[0]
    'math and gsm share prompts, 50.0 % of one of them: 3 of math stand in gsm (2 as the same text), 2 of gsm in math'
    """
    first, second = overlap.first, overlap.second
    return (
        f"{first} and {second} share prompts, {overlap.share:.1%} of one of them: "
        f"{overlap.first_shared:,} of {first} stand in {second} ({overlap.same_text:,} as the same text), "
        f"{overlap.second_shared:,} of {second} in {first}; the others share {RUN} words in a row"
    ).replace("%", " %")


def _print_samples(one: InspectedSet, console: Console) -> None:
    for number, sample in enumerate(one.samples, start=1):
        console.print()
        console.rule(Text(f"{one.kind} {one.name}, sample {number} of {len(one.samples)}"), align="left")
        console.print(colored(sample), soft_wrap=True)


def _figures(sets: list[InspectedSet]) -> Table:
    table = Table("set", "", "rows", "dropped", "cut", "tokens", "answer tokens", "longest", box=None)
    for one in sets:
        figures = one.figures
        counts = (figures.rows, figures.dropped, figures.cut, figures.tokens, figures.answer_tokens, figures.longest)
        lost = figures.dropped or figures.cut
        table.add_row(Text(one.name), one.kind, *(f"{count:,}" for count in counts), style="yellow" if lost else None)
    return table


def _lengths(sets: list[InspectedSet]) -> Table:
    """Histograms: a row for each set, a column for each bin."""
    edges = sorted({edge for one in sets for edge in one.figures.lengths})
    table = Table("samples by tokens", "", *(f"≤ {edge:,}" for edge in edges), box=None)
    for one in sets:
        most = max(one.figures.lengths.values(), default=1)
        counts = [one.figures.lengths.get(edge, 0) for edge in edges]
        table.add_row(Text(one.name), one.kind, *(f"{_BARS[-(-8 * count // most)]} {count:,}" for count in counts))
    return table
