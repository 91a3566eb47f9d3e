"""The verb ``data``: ``data inspect`` looks at a run's data, ``data translate`` makes abilities in other languages."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from act_lightning.cli import PROGRAM, VERBS, lightning_cli
from act_lightning.cli.config_merging import ConfigParser, MergeConfigFiles
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.translation.report import print_report
from act_lightning.translation.settings import TranslationSettings
from act_lightning.translation.translate import translate

_TRANSLATE = "Translate abilities by any OpenAI-compatible endpoint, and go on where an earlier run ended."


def main(arguments: Sequence[str]) -> int:
    """Look at data, or translate it.

    Args:
        arguments: ``inspect`` or ``translate``, and its options.

    Returns:
        The exit status: 0 for success; 1 if an endpoint left rows unanswered, which another run asks again.

    Raises:
        ActError: If settings or rows are wrong, or an endpoint refuses everything.
    """
    front = argparse.ArgumentParser(prog=f"{PROGRAM} data", description=VERBS["data"].about)
    verbs = front.add_subparsers(dest="verb", metavar="VERB", title="verbs", required=True)
    for name, about in (("inspect", lightning_cli.INSPECT), ("translate", _TRANSLATE)):
        verbs.add_parser(name, help=about, add_help=False)
    verb = front.parse_args(list(arguments[:1])).verb
    if verb == "inspect":
        return lightning_cli.main(["inspect", *arguments[1:]])
    return _translate(arguments[1:])


def _translate(arguments: Sequence[str]) -> int:
    parser = ConfigParser(prog=f"{PROGRAM} data translate", description=_TRANSLATE)
    parser.add_argument("-c", "--config", action=MergeConfigFiles, help="Path to a YAML file; may be repeated.")
    parser.add_class_arguments(AbilityDataModule, "data")
    parser.add_class_arguments(TranslationSettings, "translate")
    given = parser.parse_args(list(arguments))
    made = parser.instantiate_classes(given)
    report = translate(made.data.abilities, made.translate)
    print_report(report, Console(highlight=False))
    return int(report.unanswered > 0)
