"""The verbs ``card`` and ``replay``: write the cards of a run again; make a run again from its card."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from act_lightning.cards.card import exported_folders, read_card, read_transfer, rebuild_card
from act_lightning.cards.recipes import localize_recipe
from act_lightning.cards.record import CARD, data_fingerprints, model_identities, result_hashes, versions
from act_lightning.checkpoints.files import write_file
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

_OTHER_INPUT = "Give what the card names: the same files, or the same commit of the hub."


def input_issues(recipe: Mapping[str, Any], record: Mapping[str, Any]) -> list[ConfigIssue]:
    """Models and data that are not those of the recorded run.

    Args:
        recipe: The recipe with paths of this machine.
        record: What the card tells.
    """
    models = {key: one["digest"] for key, one in record["models"].items()}
    found = {key: one["digest"] for key, one in model_identities(recipe).items()}
    wanted, given = {**models, **record["data"]}, {**found, **data_fingerprints(recipe)}
    return [
        ConfigIssue(setting, _brief(given.get(setting)), f"must have the recorded hash {_brief(hash_)}", _OTHER_INPUT)
        for setting, hash_ in wanted.items()
        if hash_ is not None and given.get(setting) != hash_
    ]


def version_differences(record: Mapping[str, Any]) -> list[str]:
    """Versions on which the last bits may depend and that are not the recorded ones, one phrase each."""
    here = versions()
    return [
        f"{name}: {recorded} recorded, {here.get(name, 'not installed')} here"
        for name, recorded in record["versions"].items()
        if here.get(name) != recorded
    ]


def result_differences(made: Path, card: Path, record: Mapping[str, Any]) -> list[str]:
    """In what a result is not the recorded one, one phrase each; empty where its bits are the same.

    Args:
        made: The exported folder.
        card: The folder of the card, where the record of the transfer may lie too.
        record: What the card tells.
    """
    recorded, found = record["result"], result_hashes(made, verify=bool(record["result"]["sha256"]))
    files = recorded["sha256"] or {"the digest of all weights": recorded["digest"]}
    given = found["sha256"] or {"the digest of all weights": found["digest"]}
    different = [
        f"{name}: {_brief(hash_)} recorded, {_brief(given.get(name))} made"
        for name, hash_ in files.items()
        if given.get(name) != hash_
    ]
    return different and [*different, *_transfer_differences(made, card)]


def _transfer_differences(made: Path, card: Path) -> list[str]:
    """Hashes of models and masks in which the two transfers differ."""
    before, after = (read_transfer(folder).get("hashes", {}) for folder in (card, made))
    return [
        f"{name}: {_brief(before[name])} recorded, {_brief(after[name])} made"
        for name in before
        if name in after and before[name] != after[name]
    ]


def _brief(hash_: object) -> str:
    return "nothing" if hash_ is None else f"{str(hash_)[:12]}…"


def run_card(arguments: Sequence[str]) -> int:
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
        text = rebuild_card(folder, root / "evaluations")
        if given.print:
            print(text)
        else:
            write_file(folder / CARD, text)
            print(f"card written to {folder / CARD}")
    return 0


_EXPORTS = {"fit": "model", "merge": "merged"}
_USAGE = "%(prog)s CARD [--from DIR …] [--out DIR] [--section.key VALUE …]"
_LAST_BITS = "Results are the same to the last bit only with the same versions, on the same kind of machine."


def run_replay(arguments: Sequence[str]) -> int:
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
    settings = localize_recipe(recipe, record["shortened"], [Path.cwd(), *given.folders], out, places)
    raise_if_any(input_issues(settings, record))
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
        raise ActError(ConfigIssue("card", [str(card) for card in named], "must be one card", "Name a README.md."))
    return Path(named[0] / CARD if named[0].is_dir() else named[0])


def _check(card: Path, recipe: dict[str, Any], record: dict[str, Any]) -> None:
    """Refuse cards that tell too little."""
    if record.get("verb") not in _EXPORTS or "model" not in recipe or "trainer" not in recipe:
        problem = "must hold the recipe of a `fit` or `merge` of the command line"
        raise ActError(ConfigIssue("card", str(card), problem, "A program's run is made again by the program."))
    if "result" not in record:
        problem = "must hold the hashes of the result, which the export of a run that was killed lacks"
        raise ActError(ConfigIssue("card", str(card), problem, f"Run `{PROGRAM} card` on its folder."))


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
    from act_lightning.cli.lightning_cli import main as run  # here, for it takes seconds

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
