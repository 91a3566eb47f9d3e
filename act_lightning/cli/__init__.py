"""The command line: its verbs, and the function that answers each. That function's module is imported when needed."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import act_lightning
from act_lightning.defaults import is_first_process
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.escaping import terminal_text
from act_lightning.interruptions import FULL_DISK, naming_full_disks, raising_at_ctrl_c

if TYPE_CHECKING:
    from lightning.pytorch.cli import ArgsType

PROGRAM = "python -m act_lightning"
LIGHTNING_CLI = "lightning_cli:main"


class Verb(NamedTuple):
    """One verb of the command line.

    Attributes:
        about: What it does, in a sentence.
        entry: ``module:function`` in this package, which takes the arguments after the verb and returns the exit
            status. ``lightning_cli:main`` takes the verb too, and answers all verbs that need the config of a run.
        imports: The heaviest package that it imports at once, as far as that is one of torch and Lightning.
    """

    about: str
    entry: str = LIGHTNING_CLI
    imports: Literal["", "torch", "PyTorch Lightning"] = "PyTorch Lightning"


VERBS = {
    "fit": Verb("Profile, transfer, fine-tune and export; without profile.sources, fine-tune and export."),
    "validate": Verb("Measure loss, perplexity and token accuracy on data.validation."),
    "test": Verb("Generate answers for data.evaluations, grade them, and write the results."),
    "predict": Verb("Generate answers for data.evaluations and write them."),
    "profile": Verb("Measure the scores of every ability and stop."),
    "merge": Verb("Profile where scores are missing, transfer, and export; no fine-tuning.", "merge:main", "torch"),
    "causes": Verb("Test on held-out samples whether the selected channels carry the ability: patch and ablate them."),
    "compare": Verb("Put evaluations of several runs side by side, paired by row.", "reports:run_compare", "torch"),
    "sweep": Verb("Evaluate a grid of λ and p, or compare methods, with one model in memory."),
    "patch": Verb(
        "Make, apply, revert or show an ability patch, a file that holds what changed; or extract a LoRA.",
        "patch:main",
        "torch",
    ),
    "dequantize": Verb("Write a checkpoint of fp8 blocks or mxfp4 as plain weights.", "dequantize:main", "torch"),
    "card": Verb(
        "Rewrite the card of a run's exported models, with its results and all hashes.", "cards:run_card", "torch"
    ),
    "replay": Verb("Repeat a run from its card, and say whether the bits are the same.", "replay:run_replay", "torch"),
    "data": Verb("Inspect data before a run, or translate it: data inspect, data translate.", "plan:run_data", "torch"),
    "plan": Verb(
        "Read configs and headers only, and say what will happen and what will go wrong.", "plan:main", "torch"
    ),
    "report": Verb(
        "Write the paper's findings from saved scores: one page, figures, tables.", "reports:run_report", "torch"
    ),
    "init": Verb("Write a commented config for two models and data files, from what they say.", "init:main", "torch"),
    "config-schema": Verb(
        "Print the JSON schema of a config, for editors that check and complete it.", "config_schema:main", ""
    ),
    "env": Verb(
        "Print versions, machine, storage and variables for a bug report, without secrets.", "environment:main", ""
    ),
}


def main(args: ArgsType = None) -> int:
    """Run the command line.

    Args:
        args: Arguments, or a config as a dict; by default the arguments of the process.

    Returns:
        The exit status: 0 for success. A wrong command line raises SystemExit, as in argparse.
    """
    arguments: Any = _arguments_of_process() if args is None else args
    entry = LIGHTNING_CLI
    if isinstance(arguments, list):
        name = arguments[0] if arguments else "--help"
        if name in ("-h", "--help", "--version") or not (name in VERBS or name.startswith("-")):
            _front_parser().parse_args(arguments[:1])
        if not {"-h", "--help"}.isdisjoint(arguments) and _print_help(arguments):
            return 0
        if "--help-all" in arguments:
            arguments = ["--help" if word == "--help-all" else word for word in arguments]
        if name in VERBS and VERBS[name].entry != LIGHTNING_CLI:
            entry, arguments = VERBS[name].entry, arguments[1:]
    try:
        module, function = entry.split(":")
        with naming_full_disks(), raising_at_ctrl_c():
            return int(getattr(import_module(f"{__name__}.{module}"), function)(arguments))
    except ActError as error:
        print(terminal_text(f"error: {error}"), file=sys.stderr)
        return 1
    except OSError as error:  # a fact about the user's files that no check foresaw, such as a name that is too long
        if error.filename is None and error.errno not in FULL_DISK:
            raise
        hint = "Correct the path, permit access to it, or free some space."
        issue = ConfigIssue(
            "file", str(error.filename or "standard output"), f"must be usable ({error.strerror})", hint
        )
        print(terminal_text(f"error: {issue}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before or outside a Trainer's run, which has handlers of its own
        print("stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT


def _arguments_of_process() -> list[str]:
    """The arguments of this process; before a verb's packages are imported, which takes seconds, say what it does."""
    arguments = sys.argv[1:]
    packages = VERBS[arguments[0]].imports if arguments and arguments[0] in VERBS else ""
    if packages and is_first_process() and {"-h", "--help", "--json", "--print_config"}.isdisjoint(arguments):
        print(f"{arguments[0]}: importing {packages}, then reading what it is given", file=sys.stderr, flush=True)
    return arguments


def _print_help(arguments: Sequence[str]) -> bool:
    """Print the help of the verb that is named, and say whether there is one; it was made by scripts/help.py."""
    path = Path(__file__).with_name("help.json")
    texts: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = texts.get(" ".join(arguments[:2])) or texts.get(arguments[0])
    if text is not None:
        print(text, end="")
    return text is not None


def _front_parser() -> argparse.ArgumentParser:
    """Make the parser of ``--help`` and unknown verbs, without the options of any verb, which takes seconds."""
    from act_lightning.cli.parser_messages import VerbParser

    parser = VerbParser(
        prog=PROGRAM, description=act_lightning.__doc__, epilog=f"Options of a verb: {PROGRAM} VERB --help"
    )
    parser.add_argument("--version", action="version", version=f"act-lightning {act_lightning.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", title="verbs", required=True)
    for name, verb in VERBS.items():
        verbs.add_parser(name, help=verb.about)
    return parser
