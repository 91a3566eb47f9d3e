"""The verbs ``card`` and ``replay``: rewrite the cards of a run; repeat a run from its card."""

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
from act_lightning.cards.record import CARD, data_fingerprints, localize_recipe, model_identities, versions
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.weight_files import identify
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

_EXPORTS = {"fit": "model", "merge": "merged"}


def run_card(arguments: Sequence[str]) -> int:
    """Rewrite the cards of a run, given what follows the verb, and return the exit status.

    Raises:
        ActError: If there is no exported model, or it has no card.
    """
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} card", description=VERBS["card"].about)
    parser.add_argument("run", metavar="RUN", type=Path, help="A run's folder, or an exported model.")
    parser.add_argument("--print", action="store_true", help="Print the cards and write nothing.")
    args = parser.parse_args(list(arguments))
    for folder in exported_folders(args.run):
        root = folder.parent if folder != args.run else folder
        text = rebuild_card(folder, root / "evaluations")
        if args.print:
            print(text)
        else:
            write_file(folder / CARD, text)
            print(f"card written to {folder / CARD}")
    return 0


def run_replay(arguments: Sequence[str]) -> int:
    """Repeat a run, given what follows the verb.

    Returns:
        The exit status: 0 if the result has the recorded bits.

    Raises:
        ActError: If the card is not one of ours, or a model or file is missing, or is not the recorded one.
    """
    args, rest = _replay_parser().parse_known_args(list(arguments))
    card = _card_path([path for path in (args.positional, args.card) if path is not None])
    recipe, record = read_card(card)
    raise_if_any(_card_issues(card, recipe, record))
    output = args.out or Path(f"{recipe['trainer'].get('default_root_dir') or 'run'}-replay")
    given_paths, overrides = _split_overrides(rest, record["shortened"])
    settings = localize_recipe(recipe, record["shortened"], [Path.cwd(), *args.folders], output, given_paths)
    raise_if_any(_input_issues(settings, record))
    installed = versions()
    version_notes = [
        f"{name}: {recorded} recorded, {installed.get(name, 'not installed')} here"
        for name, recorded in record["versions"].items()
        if installed.get(name) != recorded
    ]
    for note in version_notes:
        print(f"note: {note}", file=sys.stderr)
    status = _run_recipe(record["verb"], settings, overrides)
    if status or int(os.environ.get("LOCAL_RANK", 0)):  # only the main process compares
        return status
    return _compare(output / _EXPORTS[record["verb"]], card, record, version_notes)


def _replay_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} replay",
        usage="%(prog)s CARD [--from DIR …] [--out DIR] [--section.key VALUE …]",
        description=VERBS["replay"].about,
        allow_abbrev=False,
    )
    parser.add_argument("positional", metavar="CARD", nargs="?", type=Path, help="A README.md, or its folder.")
    parser.add_argument("--card", type=Path, help="The same.")
    about = "Where to look for models and data files by name, after the current folder; may be repeated."
    parser.add_argument("--from", dest="folders", metavar="DIR", type=Path, action="append", default=[], help=about)
    about = "The folder to write; by default that of the run, with `-replay` appended."
    parser.add_argument("--out", metavar="DIR", type=Path, help=about)
    return parser


def _card_path(paths: list[Path]) -> Path:
    if len(paths) != 1:
        raise ActError(ConfigIssue("card", [str(path) for path in paths], "must be one card", "Name a README.md."))
    return paths[0] / CARD if paths[0].is_dir() else paths[0]


def _card_issues(card: Path, recipe: Mapping[str, Any], record: Mapping[str, Any]) -> list[ConfigIssue]:
    """What a card lacks to be replayed."""
    if record.get("verb") not in _EXPORTS or "model" not in recipe or "trainer" not in recipe:
        problem = "must hold the recipe of a `fit` or `merge` of the command line"
        return [ConfigIssue("card", str(card), problem, "A program's run is made again by the program.")]
    if "result" not in record:
        problem = "must hold the hashes of the result, which the export of a run that was killed lacks"
        return [ConfigIssue("card", str(card), problem, f"Run `{PROGRAM} card` on its folder.")]
    return []


def _split_overrides(arguments: Sequence[str], shortened: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split options into paths for the settings that the card shortened, and options for the verb."""
    paths, overrides, rest = {}, [], list(arguments)
    while rest:
        name, separator, value = rest.pop(0).partition("=")
        if name.removeprefix("--") in shortened and (separator or rest):
            paths[name.removeprefix("--")] = value if separator else rest.pop(0)
        else:
            overrides.append(name + separator + value)
    return paths, overrides


def _input_issues(settings: Mapping[str, Any], record: Mapping[str, Any]) -> list[ConfigIssue]:
    """Models and data whose hashes are not those of the record.

    Args:
        settings: The recipe, with paths of this machine.
        record: The card's record.
    """
    recorded = {name: model["digest"] for name, model in record["models"].items()} | record["data"]
    actual = {name: model["digest"] for name, model in model_identities(settings).items()} | data_fingerprints(settings)
    hint = "Give what the card names: the same files, or the same commit of the hub."
    return [
        ConfigIssue(setting, _brief(actual.get(setting)), f"must have the recorded hash {_brief(digest)}", hint)
        for setting, digest in recorded.items()
        if digest is not None and actual.get(setting) != digest
    ]


def _run_recipe(verb: str, settings: dict[str, Any], overrides: list[str]) -> int:
    from act_lightning.cli.lightning_cli import main  # seconds of imports, not needed to refuse a card

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "recipe.yaml"
        config.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return main([verb, "--config", str(config), *overrides])


def _compare(output: Path, card: Path, record: Mapping[str, Any], version_notes: list[str]) -> int:
    """Compare an exported folder with the record, print the result, and return the exit status."""
    recorded = record["result"]
    actual = identify(output, verify=bool(recorded["sha256"]))
    whole = "the digest of all weights"
    differences = _differences(
        recorded["sha256"] or {whole: recorded["digest"]}, actual.sha256 or {whole: actual.digest}
    )
    if not differences:
        proof = "SHA-256 of every file" if recorded["sha256"] else "digest: headers and 64 KiB of every tensor"
        print(f"the same bits as recorded ({proof}): {output}")
        return 0
    before, after = (read_transfer(folder).get("hashes", {}) for folder in (card.parent, output))
    differences += _differences({name: before[name] for name in before if name in after}, after)
    advice = "Results are the same to the last bit only with the same versions, on the same kind of machine."
    reasons = "; ".join(version_notes) or "the versions are those recorded"
    print(f"error: {output} differs from the record. {advice} Here: {reasons}.", file=sys.stderr)
    for difference in differences:
        print(f"  {difference}", file=sys.stderr)
    return 1


def _differences(recorded: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {_brief(digest)} recorded, {_brief(actual.get(name))} made"
        for name, digest in recorded.items()
        if actual.get(name) != digest
    ]


def _brief(digest: object) -> str:
    return "nothing" if digest is None else f"{str(digest)[:12]}…"
