"""The command line: which verb is meant, and which module answers it. That module is imported when it is needed."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import act_lightning
from act_lightning.errors import ActError

if TYPE_CHECKING:
    from lightning.pytorch.cli import ArgsType

PROGRAM = "python -m act_lightning"
CONFIGURED = "lightning_cli:main"


class Verb(NamedTuple):
    """One verb of the command line.

    Attributes:
        about: What it does, in a sentence.
        entry: ``module:function`` of this package that answers it, given the arguments after the verb and returning
            the exit status; ``lightning_cli:main`` answers all verbs that take the config of a run, and is given the
            verb too.
    """

    about: str
    entry: str = CONFIGURED


VERBS = {
    "fit": Verb("Profile, transfer, fine-tune and export; without profile.sources, fine-tune and export."),
    "validate": Verb("Measure loss, perplexity and token accuracy on data.validation."),
    "test": Verb("Generate answers for data.evaluations, judge them, and write down what was found."),
    "predict": Verb("Generate answers for data.evaluations and write them down."),
    "profile": Verb("Measure the scores of every ability and stop."),
    "merge": Verb(
        "Profile where scores are missing, transfer, and export the merged model; no fine-tuning.", entry="merge:main"
    ),
    "causes": Verb("Ask on held-out samples whether the selected channels carry the ability: patch and ablate them."),
    "compare": Verb("Put evaluations of several runs side by side, paired by row.", entry="reports:run_compare"),
    "sweep": Verb("Walk a grid of λ and p, or compare methods: one model in memory, every point evaluated."),
    "patch": Verb("Make, apply, revert or show an ability patch: what was changed, as a file.", entry="patch:main"),
    "card": Verb(
        "Write the card of a run's exported models again, with its results and all hashes.", entry="cards:run_card"
    ),
    "replay": Verb("Make a run again from its card, and say whether the bits are the same.", entry="cards:run_replay"),
    "data": Verb("Look at data before a run, or translate it: data inspect, data translate.", entry="data:main"),
    "plan": Verb("Read configs and headers only, and say what will happen and what will go wrong."),
    "report": Verb(
        "Draw the paper's findings from saved scores: one page, its figures and tables.", entry="reports:run_report"
    ),
}


def main(args: ArgsType = None) -> int:
    """Run the command line.

    Args:
        args: Arguments, or a config as a dict; by default the arguments of the process.

    Returns:
        The exit status: 0 for success. Mistakes in the command line's form leave by SystemExit, as argparse's do.
    """
    arguments: Any = sys.argv[1:] if args is None else args
    if not isinstance(arguments, list):
        return _run(CONFIGURED, arguments)
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        _front().parse_args(arguments)
    verb = VERBS.get(arguments[0])
    if verb is None and not arguments[0].startswith("-"):
        _front().parse_args(arguments[:1])
    if verb is None or verb.entry == CONFIGURED:
        return _run(CONFIGURED, arguments)
    return _run(verb.entry, arguments[1:])


def _run(entry: str, arguments: Any) -> int:  # noqa: ANN401 - a list, or whatever LightningCLI takes
    try:
        module, function = entry.split(":")
        return int(getattr(import_module(f"{__name__}.{module}"), function)(arguments))
    except ActError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _front() -> argparse.ArgumentParser:
    """What ``--help`` shows, without the options of any verb, which take seconds to gather."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=act_lightning.__doc__, epilog=f"Options of a verb: {PROGRAM} VERB --help"
    )
    parser.add_argument("--version", action="version", version=f"act-lightning {act_lightning.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", title="verbs", required=True)
    for name, verb in VERBS.items():
        verbs.add_parser(name, help=verb.about)
    return parser
