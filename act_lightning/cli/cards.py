"""The verb ``card``: rewrite the cards of a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from act_lightning.cards.card import exported_folders, rebuild_card
from act_lightning.cards.record import CARD
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.lock import lock_root
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.cli.next_step import print_next
from act_lightning.cli.parser_messages import VerbParser
from act_lightning.escaping import terminal_text


def run_card(arguments: Sequence[str]) -> int:
    """Rewrite the cards of a run, given what follows the verb, and return the exit status.

    Raises:
        ActError: If there is no exported model, or it has no card.
    """
    parser = VerbParser(prog=f"{PROGRAM} card", description=VERBS["card"].about)
    parser.add_argument("run", metavar="RUN", type=Path, help="A run's folder, or an exported model.")
    parser.add_argument("--print", action="store_true", help="Print the cards and write nothing.")
    args = parser.parse_args(list(arguments))
    folders = exported_folders(args.run)
    root = args.run if args.run not in folders else args.run.parent
    with nullcontext() if args.print else lock_root(root, "card", "RUN"):
        for folder in folders:
            text = rebuild_card(folder, args.run / "evaluations")
            if args.print:
                print(terminal_text(text))
            else:
                write_file(folder / CARD, text)
                print(terminal_text(f"card written to {folder / CARD}"))
    if not args.print:
        print_next("replay", folders[0])
    return 0
