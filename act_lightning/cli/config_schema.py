"""The verb ``config-schema``: the JSON schema of a config, for editors that check and complete YAML."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from act_lightning.cli import PROGRAM, VERBS
from act_lightning.cli.parser_messages import VerbParser

FILE = Path(__file__).with_name("config.schema.json")
"""Made by ``python -m scripts.schema``."""


def main(arguments: Sequence[str]) -> int:
    """Print the schema, or where it lies, and return the exit status."""
    parser = VerbParser(
        prog=f"{PROGRAM} config-schema",
        description=VERBS["config-schema"].about,
        epilog="Editors with the YAML language server read it from a first line: # yaml-language-server: $schema=FILE",
    )
    parser.add_argument("--path", action="store_true", help="Print the path of the installed schema instead.")
    args = parser.parse_args(list(arguments))
    sys.stdout.write(f"{FILE}\n" if args.path else FILE.read_text(encoding="utf-8"))
    return 0
