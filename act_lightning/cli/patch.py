"""The verb ``patch``: an ability as a file of its own, made, applied, taken out again and shown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from act_lightning.checkpoints.models import locate
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.patches.apply import apply_patch, revert_patch
from act_lightning.patches.description import summarize_patch
from act_lightning.patches.make import make_patch
from act_lightning.patches.patch_file import PatchFile, find_patch, open_patch

_GROUPS = {"by_layer": "layer", "by_module_type": "module type"}
_COLUMNS = ("tensors", "rows", "columns", "changed", "elements")


def main(arguments: Sequence[str]) -> int:
    """Make, apply, revert or show a patch.

    Args:
        arguments: What follows the verb.

    Returns:
        The exit status: 0 for success.

    Raises:
        ActError: See :mod:`act_lightning.patches`.
    """
    given = _parser().parse_args(list(arguments))
    {"make": _make, "apply": _apply, "revert": _apply, "show": _show}[given.action](given)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} patch", description=VERBS["patch"].about)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    about = "Write what distinguishes a tuned model from its base to a file. Weights only: the base keeps its config."
    make = actions.add_parser("make", help=about, description=about)
    make.add_argument("--base", required=True, metavar="DIR", help="Folder, hub id or lab:… of the base.")
    make.add_argument("--tuned", required=True, metavar="DIR", help="The same of the tuned model.")
    make.add_argument("--out", required=True, metavar="FILE", type=Path, help="The patch, a safetensors file.")
    for action, about in (
        ("apply", "Write the base with patches applied."),
        ("revert", "Write a patched model with its patches taken out: the base, to the last bit."),
    ):
        own = actions.add_parser(action, help=about, description=about)
        own.add_argument("--model", required=True, metavar="DIR", help="Folder, hub id or lab:… of the model.")
        own.add_argument(
            "--patch",
            required=True,
            action="append",
            metavar="FILE",
            help="A file, or hf://owner/name/file@revision. May be repeated, in the order of application.",
        )
        own.add_argument("--out", required=True, metavar="DIR", type=Path, help="The folder to be.")
        stack = "Let patches of one base touch the same rows; the later one wins."
        own.add_argument("--stack", action="store_true", help=stack)
    about = "Print what a patch changes, by layer and module type."
    show = actions.add_parser("show", help=about, description=about)
    show.add_argument("patch", metavar="FILE", help="A file, or hf://owner/name/file@revision.")
    show.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")
    return parser


def _make(given: argparse.Namespace) -> None:
    base, tuned = (locate(getattr(given, role), None, f"--{role}") for role in ("base", "tuned"))
    patch = make_patch(base, tuned, given.out, (given.base, given.tuned))
    _print_summary(patch, Console(highlight=False), groups=False)


def _apply(given: argparse.Namespace) -> None:
    model, patches = locate(given.model, None, "--model"), [find_patch(reference) for reference in given.patch]
    work = apply_patch if given.action == "apply" else revert_patch
    digest = work(model, patches, given.out, given.stack, given.model)
    print(f"model written to {given.out}; digest of its weights {digest}")


def _show(given: argparse.Namespace) -> None:
    patch = open_patch(find_patch(given.patch))
    if given.json:
        print(json.dumps(summarize_patch(patch.record), indent=2, ensure_ascii=False))
    else:
        _print_summary(patch, Console(highlight=False), groups=True)


def _print_summary(patch: PatchFile, console: Console, groups: bool) -> None:
    found, record = summarize_patch(patch.record), patch.record
    console.print(f"{patch.path}: {patch.path.stat().st_size / 1e6:,.2f} MB", soft_wrap=True, markup=False)
    made = f"made from {record.provenance.get('tuned')} over {record.provenance.get('base')}"
    console.print(made, soft_wrap=True, markup=False)
    share = f"{found['changed']:,} of {found['parameters']:,} elements ({found['changed_share']:.2%})"
    console.print(f"changes {share} in {len(record.tensors)} tensors")
    console.print(f"fits   {record.base}\nmakes  {record.result}")
    for one in record.provenance.get("config_differences", ()):
        told = f"not carried: {one['key']} is {one['base']!r} in the base, and {one['tuned']!r} in the tuned model"
        console.print(told, soft_wrap=True, markup=False)
    for group, title in _GROUPS.items() if groups else ():
        table = Table(title, *_COLUMNS, box=None)
        for row in found[group]:
            table.add_row(row["name"], *(f"{row[column]:,}" for column in _COLUMNS))
        console.print(table)
