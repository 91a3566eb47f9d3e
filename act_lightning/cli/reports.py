"""The verbs ``report`` and ``compare``: the findings in saved scores; evaluations side by side."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from act_lightning.checkpoints.lock import lock_output, lock_root
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.cli.next_step import print_next
from act_lightning.cli.parser_messages import VerbParser
from act_lightning.console import Console
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.escaping import terminal_text
from act_lightning.evaluation.run_comparison import compare_runs, comparison_csv, comparison_markdown, comparison_tables


def run_report(arguments: Sequence[str]) -> int:
    """Write a report, given what follows the verb, and return the exit status."""
    args = _report_parser().parse_args(arguments)
    readings, folders = _parse_pairs("--ability", args.ability), _parse_pairs("--model", args.model)
    from act_lightning.analysis.report.findings_report import make_report  # seconds of imports, not needed for --help

    with lock_root(args.runs[0], "report", "RUN") if args.out is None else lock_output(args.out, "report", "--out"):
        page = make_report(
            args.runs,
            args.out,
            ratios=args.ratio,
            shown=args.show,
            readings=readings,
            folders={name: Path(folder) for name, folder in folders.items()},
            weights=not args.no_weights,
            mixed_versions=args.mixed_versions,
        )
    print(terminal_text(page))
    print(terminal_text(f"next: python -m webbrowser -t {shlex.quote(str(page))}"), file=sys.stderr)
    return 0


def _report_parser() -> VerbParser:
    parser = VerbParser(
        prog=f"{PROGRAM} report",
        description=VERBS["report"].about,
        epilog="Language and domain of an ability are read from its name, split at -, _ and '.'. The last part, else "
        "the first, is the language if it is a two-letter code of ISO 639-1; the rest is the domain: science-ar.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="A run's folder, with scores/ in it.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="Where to write; by default <first RUN>/report.")
    about = (
        "Values of p: the first for all findings, overlaps at every one; by default the run's, else the paper's 0.01."
    )
    parser.add_argument("--ratio", type=float, nargs="+", metavar="P", help=about)
    about = "Abilities whose layers and modules are shown; by default the first."
    parser.add_argument("--show", nargs="+", default=[], metavar="ABILITY", help=about)
    about = "How to read the name of an ability, such as gsm8k=math-en; may be repeated."
    parser.add_argument("--ability", action="append", default=[], metavar="NAME=DOMAIN-LANGUAGE", help=about)
    about = "The folder of a model that the scores call NAME; may be repeated."
    parser.add_argument("--model", action="append", default=[], metavar="NAME=DIR", help=about)
    parser.add_argument("--no-weights", action="store_true", help="Do not read the models' weights: no Finding 5.")
    about = "Allow scores that were measured with different versions of packages."
    parser.add_argument("--mixed-versions", action="store_true", help=about)
    return parser


def _parse_pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not (name and value):
            raise ActError(ConfigIssue(option, text, "must read NAME=VALUE", "Put a name, an equals sign and a value."))
        pairs[name] = value
    return pairs


def run_compare(arguments: Sequence[str]) -> int:
    """Compare runs, given what follows the verb, and return the exit status.

    Raises:
        ActError: If a run was not tested, or the runs have different rows.
    """
    parser = VerbParser(prog=f"{PROGRAM} compare", description=VERBS["compare"].about)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="A run's folder; the first is the baseline.")
    parser.add_argument("--format", choices=("table", "markdown", "csv"), default="table", help="By default a table.")
    args = parser.parse_args(list(arguments))
    if len(args.runs) < 2:
        parser.error("name at least two runs")
    comparison = compare_runs(args.runs)
    if args.format == "table":
        for table in comparison_tables(comparison):
            Console().print(table)
        if profiled := [run for run in dict.fromkeys(args.runs) if any(run.glob("scores*/*/*.safetensors"))]:
            print_next("report", *profiled)
        else:
            print_next("compare", *args.runs, "--format", "markdown")
    else:
        text = comparison_csv(comparison) if args.format == "csv" else comparison_markdown(comparison)
        sys.stdout.write(terminal_text(text))
    return 0
