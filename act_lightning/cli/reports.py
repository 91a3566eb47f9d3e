"""The verbs ``report`` and ``compare``: the findings of saved scores; evaluations side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from act_lightning.cli import PROGRAM, VERBS
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.run_comparison import compare_runs, comparison_csv, comparison_markdown, comparison_tables


def run_report(arguments: Sequence[str]) -> int:
    """Write a report.

    Args:
        arguments: What follows the verb.

    Returns:
        The exit status: 0 for success.
    """
    args = _parser().parse_args(arguments)
    readings, folders = _pairs("--ability", args.ability), _pairs("--model", args.model)
    from act_lightning.analysis.report import make_report  # seconds of imports, not needed for --help

    page = make_report(
        args.runs,
        args.out,
        ratios=args.ratio or [0.01],
        shown=args.show,
        readings=readings,
        folders={name: Path(folder) for name, folder in folders.items()},
        weights=not args.no_weights,
        mixed_versions=args.mixed_versions,
    )
    print(page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} report",
        description=VERBS["report"].about,
        epilog="Language and domain of an ability are read from its name: split at -, _ and ., the last part, else the "
        "first, is the language if it is a two-letter code of ISO 639-1; the rest is the domain (science-ar, math-en).",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="A run's folder, with scores/ in it.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="Where to write; by default <first RUN>/report.")
    parser.add_argument(
        "--ratio", type=float, nargs="+", metavar="P",
        help="Values of p: the first for all findings, overlaps at every one; by default the paper's 0.01.",
    )  # fmt: skip
    parser.add_argument(
        "--show", nargs="+", default=[], metavar="ABILITY",
        help="Abilities whose layers and modules are shown; by default the first.",
    )  # fmt: skip
    parser.add_argument(
        "--ability", action="append", default=[], metavar="NAME=DOMAIN-LANGUAGE",
        help="How to read the name of an ability, such as gsm8k=math-en; may be repeated.",
    )  # fmt: skip
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=DIR",
        help="Where a model lies that the scores name otherwise; may be repeated.",
    )  # fmt: skip
    parser.add_argument("--no-weights", action="store_true", help="Do not read the models' weights: no Finding 5.")
    parser.add_argument(
        "--mixed-versions", action="store_true", help="Allow scores that other versions of packages have measured."
    )
    return parser


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` as a dict."""
    for text in given:
        if not all(text.partition("=")):
            raise ActError(ConfigIssue(option, text, "must read NAME=VALUE", "Put a name, an equals sign and a value."))
    return {name: value for name, _, value in (text.partition("=") for text in given)}


def run_compare(arguments: Sequence[str]) -> int:
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
