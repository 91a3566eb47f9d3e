"""Cards of exported folders: written with the export, completed with its hashes, written again with results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from act_lightning.cards.card import Card, recipe_and_record
from act_lightning.cards.licenses import CARD
from act_lightning.cards.portable import portable
from act_lightning.cards.record import result_hashes, run_record
from act_lightning.cards.results import result_rows
from act_lightning.checkpoints import write_file
from act_lightning.checkpoints.carried import CONFIG
from act_lightning.errors import ActError, Fault

TRANSFER = "transfer.json"
_EXPORTS = ("model", "merged")


def first_card(base: str, recipe_yaml: str, transfer: Mapping[str, Any], verb: str) -> str:
    """The card that is written with an export, while the models and data it came from are at hand.

    Args:
        base: How the user named the target.
        recipe_yaml: The run's config; empty where a program made the run.
        transfer: What ``transfer.json`` holds; empty without a transfer.
        verb: ``merge`` or ``fit``.

    Raises:
        ActError: The recipe is no YAML mapping.
    """
    recipe = _parsed(recipe_yaml)
    sources = [{"model": source["model"]} for source in transfer.get("sources", {}).values()]
    made_by_program = {"model": {"target": base}, "profile": {"sources": sources}}
    record = run_record(verb, recipe if "model" in recipe else made_by_program)
    travels, record["shortened"] = portable(recipe)
    return Card(record, travels, transfer).render()


def complete_card(folder: Path, verify: bool) -> None:
    """Add the hashes of an exported ``folder`` to its card.

    The weights cannot be hashed before they are written, and a folder appears with a card or not at all.

    Args:
        folder: An exported model.
        verify: Whether to read all bytes, for the SHA-256 of every weight file; else the digest of a sample has to do.
    """
    write_file(folder / CARD, _again(folder, [], verify))


def card_again(folder: Path, evaluations: Path) -> str:
    """The card of an exported ``folder`` with all hashes, and the results that a run has saved since.

    Args:
        folder: An exported model.
        evaluations: The run's folder of results; it need not exist.

    Raises:
        ActError: There is no card of ours to start from, or its recipe or record has been damaged.
    """
    return _again(folder, result_rows(evaluations), verify=True)


def exported_folders(run: Path) -> list[Path]:
    """The exported models of a run: ``model`` and ``merged`` in its folder, or the folder itself.

    Raises:
        ActError: There is none.
    """
    found = [run / name for name in _EXPORTS if (run / name / CONFIG).is_file()]
    found = found or ([run] if (run / CONFIG).is_file() else [])
    if not found:
        rule = f"must be a run's folder that holds {' or '.join(_EXPORTS)}, or an exported model"
        raise ActError(Fault("run", str(run), rule, "Run `fit` or `merge` first, or correct the path."))
    return found


def read_card(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe and the record in the card at ``path``, or in the folder ``path``.

    Raises:
        ActError: There is no card, or none of ours.
    """
    path = path / CARD if path.is_dir() else path
    try:
        recipe, record = recipe_and_record(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ActError(Fault("card", str(path), f"must be a readable card ({error})", "Name a README.md.")) from error
    if not record:
        rule = "must hold the record of a run, as the cards of act-lightning's exports do"
        raise ActError(Fault("card", str(path), rule, "Name the README.md of a folder that `fit` or `merge` wrote."))
    return recipe, record


def read_transfer(folder: Path) -> dict[str, Any]:
    """What the ``transfer.json`` of an exported folder holds; empty without a transfer.

    Raises:
        ActError: It has been damaged.
    """
    path = folder / TRANSFER
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        rule = f"must be the JSON of a transfer ({error})"
        raise ActError(Fault("transfer.json", str(path), rule, "Export the model again.")) from error


def _again(folder: Path, results: list[list[str]], verify: bool) -> str:
    recipe, record = read_card(folder)
    return Card({**record, "result": result_hashes(folder, verify)}, recipe, read_transfer(folder), results).render()


def _parsed(recipe_yaml: str) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(recipe_yaml) or {})
    except (yaml.YAMLError, ValueError, TypeError) as error:
        rule = f"must be a YAML mapping, as a config is ({error})"
        raise ActError(Fault("recipe", recipe_yaml, rule, "Give the run's config, or nothing.")) from error
