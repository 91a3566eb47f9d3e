"""The verb ``compare``: evaluations of several runs side by side, paired by row."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from act_lightning.cli import PROGRAM, VERBS
from act_lightning.evaluation.comparing import compare_runs, comparison_csv, comparison_markdown, comparison_tables


def main(arguments: Sequence[str]) -> int:
    """Compare runs.

    Args:
        arguments: What follows the verb.

    Returns:
        The exit status: 0 for success.

    Raises:
        ActError: If a run was not tested, or runs have other rows.
    """
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} compare", description=VERBS["compare"].about)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="A run's folder; the first is the baseline.")
    parser.add_argument("--format", choices=("table", "markdown", "csv"), default="table", help="By default a table.")
    given = parser.parse_args(list(arguments))
    if len(given.runs) < 2:
        parser.error("name at least two runs")
    comparison = compare_runs(given.runs)
    if given.format == "table":
        for table in comparison_tables(comparison):
            Console().print(table)
    else:
        sys.stdout.write(comparison_csv(comparison) if given.format == "csv" else comparison_markdown(comparison))
    return 0
