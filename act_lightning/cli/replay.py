"""The verb ``replay``: a run made again from its card, and compared with it bit for bit."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from act_lightning.cards import CARD, read_card, settled
from act_lightning.cards.replay import input_faults, result_differences, version_differences
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.errors import ActError, Fault, refuse

_EXPORTS = {"fit": "model", "merge": "merged"}
_USAGE = "%(prog)s CARD [--from DIR …] [--out DIR] [--section.key VALUE …]"
_LAST_BITS = "Results are the same to the last bit only with the same versions, on the same kind of machine."


def main(arguments: Sequence[str]) -> int:
    """Make a run again.

    Args:
        arguments: What follows the verb.

    Returns:
        The exit status: 0 if the result has the recorded bits.

    Raises:
        ActError: If the card is none of ours, or a model or file is not to be found, or is another one.
    """
    given, others = _parser().parse_known_args(list(arguments))
    card = _card(given)
    recipe, record = read_card(card)
    _check(card, recipe, record)
    out = given.out or Path(f"{recipe['trainer'].get('default_root_dir') or 'run'}-replay")
    places, passed_on = _places(others, record["shortened"])
    settings = settled(recipe, record["shortened"], [Path.cwd(), *given.folders], out, places)
    refuse(input_faults(settings, record))
    versions = version_differences(record)
    for difference in versions:
        print(f"note: {difference}", file=sys.stderr)
    status = _run(record["verb"], settings, passed_on)
    if status or int(os.environ.get("LOCAL_RANK", 0)):  # a process that Lightning started only does its share
        return status
    return _compare(out / _EXPORTS[record["verb"]], card, record, versions)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} replay", usage=_USAGE, description=VERBS["replay"].about, allow_abbrev=False
    )
    parser.add_argument("positional", metavar="CARD", nargs="?", type=Path, help="A README.md, or its folder.")
    parser.add_argument("--card", type=Path, help="The same.")
    about = "Where models and data files are looked for by name, after the current folder; may be repeated."
    parser.add_argument("--from", dest="folders", metavar="DIR", type=Path, action="append", default=[], help=about)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="The folder to be; by default the run's, and `-replay`."
    )
    return parser


def _card(given: argparse.Namespace) -> Path:
    named = [card for card in (given.positional, given.card) if card is not None]
    if len(named) != 1:
        raise ActError(Fault("card", [str(card) for card in named], "must be one card", "Name a README.md."))
    return Path(named[0] / CARD if named[0].is_dir() else named[0])


def _check(card: Path, recipe: dict[str, Any], record: dict[str, Any]) -> None:
    """Refuse cards that tell too little."""
    if record.get("verb") not in _EXPORTS or "model" not in recipe or "trainer" not in recipe:
        rule = "must hold the recipe of a `fit` or `merge` of the command line"
        raise ActError(Fault("card", str(card), rule, "A program's run is made again by the program."))
    if "result" not in record:
        rule = "must hold the hashes of the result, which the export of a run that was killed lacks"
        raise ActError(Fault("card", str(card), rule, f"Run `{PROGRAM} card` on its folder."))


def _places(arguments: Sequence[str], shortened: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Paths that were given for shortened settings; and the other arguments, which are for the verb."""
    places, others, rest = {}, [], list(arguments)
    while rest:
        name, separator, value = rest.pop(0).partition("=")
        if name.removeprefix("--") in shortened and (separator or rest):
            places[name.removeprefix("--")] = value if separator else rest.pop(0)
        else:
            others.append(name + separator + value)
    return places, others


def _run(verb: str, settings: dict[str, Any], arguments: list[str]) -> int:
    from act_lightning.cli.configured import main as run  # here, for it takes seconds

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "recipe.yaml"
        config.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return run([verb, "--config", str(config), *arguments])


def _compare(made: Path, card: Path, record: dict[str, Any], versions: list[str]) -> int:
    different = result_differences(made, card.parent, record)
    if not different:
        proof = "SHA-256 of every file" if record["result"]["sha256"] else "digest: headers and 64 KiB of every tensor"
        print(f"the same bits as recorded ({proof}): {made}")
        return 0
    causes = "; ".join(versions) or "the versions are those recorded"
    print(f"error: {made} differs from the record. {_LAST_BITS} Here: {causes}.", file=sys.stderr)
    for difference in different:
        print(f"  {difference}", file=sys.stderr)
    return 1
