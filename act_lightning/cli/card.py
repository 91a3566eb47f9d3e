"""The verb ``card``: the cards of a run's exported models, written again with hashes and results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from act_lightning.cards import CARD, card_again, exported_folders
from act_lightning.checkpoints import write_file
from act_lightning.cli import PROGRAM, VERBS


def main(arguments: Sequence[str]) -> int:
    """Write the cards of a run again.

    Args:
        arguments: What follows the verb.

    Returns:
        The exit status: 0 for success.

    Raises:
        ActError: If there is no exported model, or no card to start from.
    """
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} card", description=VERBS["card"].about)
    parser.add_argument("run", metavar="RUN", type=Path, help="A run's folder, or an exported model.")
    parser.add_argument("--print", action="store_true", help="Print the cards and write nothing.")
    given = parser.parse_args(list(arguments))
    folders = exported_folders(given.run)
    for folder in folders:
        root = folder.parent if folder != given.run else folder
        text = card_again(folder, root / "evaluations")
        if given.print:
            print(text)
        else:
            write_file(folder / CARD, text)
            print(f"card written to {folder / CARD}")
    return 0
