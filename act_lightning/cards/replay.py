"""Whether a run that is made again has the same inputs, and gives the same bits; if not, what exactly differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from act_lightning.cards.record import data_fingerprints, model_identities, result_hashes, versions
from act_lightning.cards.writing import read_transfer
from act_lightning.errors import Fault

_OTHER_INPUT = "Give what the card names: the same files, or the same commit of the hub."


def input_faults(recipe: Mapping[str, Any], record: Mapping[str, Any]) -> list[Fault]:
    """Models and data that are not those of the recorded run.

    Args:
        recipe: The recipe with paths of this machine.
        record: What the card tells.
    """
    models = {key: one["digest"] for key, one in record["models"].items()}
    found = {key: one["digest"] for key, one in model_identities(recipe).items()}
    wanted, given = {**models, **record["data"]}, {**found, **data_fingerprints(recipe)}
    return [
        Fault(setting, _brief(given.get(setting)), f"must have the recorded hash {_brief(hash_)}", _OTHER_INPUT)
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
