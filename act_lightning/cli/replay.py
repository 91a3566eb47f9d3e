"""The verb ``replay``: repeat a run from its card, which is shown first, and compare the result with the record."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from act_lightning.cards.card import read_card, read_transfer
from act_lightning.cards.record import CARD, data_fingerprints, model_identities, versions
from act_lightning.checkpoints.weight_files import identify
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.cli.next_step import print_next
from act_lightning.cli.parser_messages import VerbParser
from act_lightning.cli.replay_settings import Overrides, localize, take_settings
from act_lightning.defaults import is_first_process
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.escaping import terminal_text
from act_lightning.redaction import is_secret

_EXPORTS = {"fit": "model", "merge": "merged"}
_ACCEPTED = "ACT_LIGHTNING_REPLAY"  # tells the processes that a launcher starts with our arguments what was answered


def run_replay(arguments: Sequence[str]) -> int:
    """Repeat a run, given what follows the verb.

    Returns:
        The exit status: 0 if the result has the recorded bits.

    Raises:
        ActError: If the card is not one of ours, or asks for what no card may; or a model or file is missing, or is not
            the recorded one.
    """
    args, rest = _replay_parser().parse_known_args(list(arguments))
    card = _card_path([path for path in (args.positional, args.card) if path is not None])
    recipe, record = read_card(card)
    raise_if_any(_card_issues(card, recipe, record))
    verb, overrides = record["verb"], Overrides.parse(rest)
    output = (args.out or card.parent / "replay").absolute()
    settings, left_out = take_settings(recipe, overrides)
    settings, options = localize(settings, record["shortened"], args.folders, output, overrides)
    if not _agreed(_summary(verb, settings, overrides, left_out, output), args.yes):
        print("nothing was run")
        return 1
    raise_if_any(_input_issues(settings, record, overrides))
    installed = versions()
    version_notes = [
        f"{name}: {recorded} recorded, {installed.get(name, 'not installed')} here"
        for name, recorded in record["versions"].items()
        if installed.get(name) != recorded
    ]
    for note in version_notes:
        print(terminal_text(f"note: {note}"), file=sys.stderr)
    status = _run_recipe(verb, settings, options)
    if status or not is_first_process():
        return status
    result = output / _EXPORTS[verb]
    status = _compare(result, card, record, version_notes)
    if not status:
        base = overrides.values.get("model.target", settings["model"]["target"])
        print_next("patch", "make", "--base", base, "--tuned", result, "--out", f"{result}.safetensors")
    return status


def _replay_parser() -> VerbParser:
    parser = VerbParser(
        prog=f"{PROGRAM} replay",
        usage="%(prog)s CARD [--from DIR …] [--out DIR] [--yes]\n       [--config FILE …] [--section.key VALUE …]",
        description=VERBS["replay"].about,
    )
    parser.add_argument("positional", metavar="CARD", nargs="?", type=Path, help="A README.md, or its folder.")
    parser.add_argument("--card", type=Path, help="The same.")
    about = "Where the card's models and data files are looked for by name, and nowhere else; may be repeated."
    parser.add_argument("--from", dest="folders", metavar="DIR", type=Path, action="append", default=[], help=about)
    about = "The folder to write; by default `replay` in the card's folder."
    parser.add_argument("--out", metavar="DIR", type=Path, help=about)
    parser.add_argument("--yes", action="store_true", help="Run what the card says without asking.")
    return parser


def _card_path(paths: list[Path]) -> Path:
    if len(paths) != 1:
        raise ActError(ConfigIssue("card", [str(path) for path in paths], "must be one card", "Name a README.md."))
    return paths[0] / CARD if paths[0].is_dir() else paths[0]


def _card_issues(card: Path, recipe: Mapping[str, Any], record: Mapping[str, Any]) -> list[ConfigIssue]:
    """What a card lacks to be replayed."""
    sections = ("model", "trainer")
    if record.get("verb") not in [*_EXPORTS] or not all(isinstance(recipe.get(name), dict) for name in sections):
        problem = "must hold the recipe of a `fit` or `merge` of the command line"
        return [ConfigIssue("card", str(card), problem, "A program's run is made again by the program.")]
    result = record.get("result")
    if result is None or (isinstance(result, dict) and not result.get("sha256")):
        problem = "must hold the SHA-256 of the result's files, which cards of killed runs and of earlier merges lack"
        return [ConfigIssue("card", str(card), problem, f"Run `{PROGRAM} card` on its folder.")]
    if not _is_record(record):
        problem = "must hold a record whose versions, models, data and hashes are text by name"
        return [ConfigIssue("card", str(card), problem, "Get the card again: this one was edited.")]
    return []


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether the parts of a record that a replay reads have their types."""

    def is_texts(value: object, *others: type) -> bool:
        return isinstance(value, dict) and all(isinstance(text, (str, *others)) for text in value.values())

    models, result, shortened = record.get("models"), record["result"], record.get("shortened")
    return (
        is_texts(record.get("versions"))
        and is_texts(record.get("data"), type(None))
        and isinstance(models, dict)
        and all(isinstance(model, dict) for model in models.values())
        and is_texts({name: model.get("digest") for name, model in models.items()}, type(None))
        and isinstance(result, dict)
        and isinstance(result.get("digest"), str)
        and is_texts(result.get("sha256"))
        and isinstance(shortened, list)
        and all(isinstance(setting, str) for setting in shortened)
    )


def _summary(
    verb: str, settings: Mapping[str, Any], overrides: Overrides, left_out: Sequence[str], output: Path
) -> str:
    """What will run, for the user to read before anything of it happens."""
    recipe = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    lines = [f"The card runs `{verb}` with these settings, and writes below {output}:", "", recipe]
    own = [f"{name} = {value}" for name, value in overrides.values.items() if not is_secret(name.rpartition(".")[2])]
    if own or overrides.of_files:
        lines += ["Your own settings: " + ", ".join([*own, *sorted(overrides.of_files)])]
    if left_out:
        lines += ["Not taken from the card: " + ", ".join(left_out)]
    return terminal_text("\n".join(lines))


def _agreed(summary: str, yes: bool) -> bool:
    """Show what will run, and ask unless ``yes``; a process that a launcher started takes the answer of the first one.

    Raises:
        ActError: There is nobody to ask.
    """
    digest = hashlib.sha256(summary.encode()).hexdigest()
    if os.environ.get(_ACCEPTED) == digest and "LOCAL_RANK" in os.environ:
        return True
    print(summary, flush=True)
    if not yes:
        if not sys.stdin.isatty():
            problem = "must be given where nobody can be asked: a card is a stranger's word on what to run"
            raise ActError(ConfigIssue("--yes", False, problem, "Read the settings above, then add --yes."))
        try:
            answer = input("Run this? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            return False
    os.environ[_ACCEPTED] = digest
    return True


def _input_issues(settings: Mapping[str, Any], record: Mapping[str, Any], overrides: Overrides) -> list[ConfigIssue]:
    """Models and data whose hashes are not those of the record.

    Args:
        settings: The recipe, with paths of this machine.
        record: The card's record.
        overrides: Models and data that config files of the user's name are not compared.
    """
    recorded = {name: model["digest"] for name, model in record["models"].items()} | record["data"]
    actual = {name: model["digest"] for name, model in model_identities(settings).items()} | data_fingerprints(settings)
    hint = "Give what the card names: the same files, or the same commit of the hub."
    return [
        ConfigIssue(setting, _brief(actual.get(setting)), f"must have the recorded hash {_brief(digest)}", hint)
        for setting, digest in recorded.items()
        if digest is not None and actual.get(setting) != digest
        if not (overrides.replace_by_file(setting) or overrides.replace_by_file(f"{setting}.path"))
    ]


def _run_recipe(verb: str, settings: dict[str, Any], options: Sequence[str]) -> int:
    from act_lightning.cli.lightning_cli import main  # seconds of imports, not needed to refuse a card

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "recipe.yaml"
        config.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return main([verb, "--config", str(config), *options], says_next=False)


def _compare(output: Path, card: Path, record: Mapping[str, Any], version_notes: list[str]) -> int:
    """Compare an exported folder with the record, print the result, and return the exit status."""
    recorded = record["result"]
    differences = _differences(recorded["sha256"], identify(output, verify=True).sha256 or {})
    if not differences:
        print(terminal_text(f"the same bits as recorded (SHA-256 of every file): {output}"))
        return 0
    before, after = (read_transfer(folder).get("hashes", {}) for folder in (card.parent, output))
    common = before.keys() & after.keys()
    differences += _differences(*({name: hashes[name] for name in sorted(common)} for hashes in (before, after)))
    advice = "Results are the same to the last bit only with the same versions, on the same kind of machine."
    reasons = "; ".join(version_notes) or "the versions are those recorded"
    lines = [f"error: {output} differs from the record. {advice} Here: {reasons}.", *differences]
    print(terminal_text("\n  ".join(lines)), file=sys.stderr)
    return 1


def _differences(recorded: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {_brief(recorded.get(name))} recorded, {_brief(actual.get(name))} made"
        for name in {**recorded, **actual}
        if actual.get(name) != recorded.get(name)
    ]


def _brief(digest: object) -> str:
    return "nothing" if digest is None else f"{str(digest)[:12]}…"
