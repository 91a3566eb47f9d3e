"""The command that comes next, as every verb says it at its end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from act_lightning.cli import PROGRAM
from act_lightning.defaults import is_first_process
from act_lightning.escaping import terminal_text
from act_lightning.redaction import REDACTED, is_secret, redact_text

_OF_EVERY_VERB = ("c", "config", "seed_everything", "model", "data", "profile", "transfer", "trainer")


def print_next(verb: str, *words: object) -> None:
    """Say on standard error which command comes next; only the first process of several does."""
    if is_first_process():
        command = " ".join((PROGRAM, verb, *(shlex.quote(str(word)) for word in words)))
        print(terminal_text(redact_text(f"next: {command}")), file=sys.stderr)


def run_options(arguments: Sequence[str], *without: str) -> list[str]:
    """The options of a run that every verb takes, without secrets.

    Args:
        arguments: What was given to a verb.
        without: Names of settings to leave out.

    >>> run_options(["fit", "--config", "a.yaml", "--overwrite", "--trainer.devices=2", "--ckpt_path", "last"])
    ['--config', 'a.yaml', '--trainer.devices=2']
    """
    options, is_taken, hides = [], False, False
    for word in arguments:
        if word.startswith("-") and not word[1:2].isdigit():
            name, equals, _ = word.lstrip("-").partition("=")
            is_taken = name.partition(".")[0] in _OF_EVERY_VERB and name not in without
            hides = is_secret(name.rpartition(".")[2])
            word = f"--{name}={REDACTED}" if hides and equals else word
        elif hides:
            word = REDACTED
        options += [word] * is_taken
    return options
