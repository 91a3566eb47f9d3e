"""What a run's saved evaluations say, as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from act_lightning.cards.card import Card, recipe_and_record
from act_lightning.cards.recipes import portable
from act_lightning.cards.record import CARD, result_hashes, run_record, short
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.headers import CONFIG
from act_lightning.errors import ActError, ConfigIssue

_SHARES = ("exact_match", "flexible_match", "answered")


def result_rows(folder: Path) -> list[list[str]]:
    """The figures in every JSON file of a run's ``evaluations/``, the head of the table first.

    Results of ``test`` are told with their intervals; comparisons as shares of exact matches; any other number under
    its dotted name. Rows name the model that was evaluated, which need not be the one with the card. A file that is no
    JSON is passed over, for others may put theirs there.

    Args:
        folder: The folder; it need not exist.
    """
    rows = [row for path in sorted(folder.glob("*.json")) for row in _file_rows(path)]
    return [["evaluation", "model", "what", "value"], *rows] if rows else []


def _file_rows(path: Path) -> Iterator[list[str]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    rows = content if isinstance(content, list) else []
    if rows and all(isinstance(row, dict) and {"correct", "total"} <= row.keys() for row in rows):
        yield from (line for row in rows for line in _comparison_rows(row))
    elif isinstance(content, dict) and {"model", "sets"} <= content.keys():
        yield from _test_rows(content)
    else:
        yield from ([path.stem, "", name, f"{value:g}"] for name, value in _numbers(content))


def _comparison_rows(row: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, correct in row["correct"].items():
        total = row["total"][name]
        share = f"{correct / total:.1%} ({correct} of {total})" if total else "no items"
        yield [name, str(row.get("model", "")), "exact match", share]


def _test_rows(content: Mapping[str, Any]) -> Iterator[list[str]]:
    """Shares with the ends of their 95 % intervals, set by set; then the means of sets to keep and to recover."""
    model = short(str(content["model"]))
    for name, one in content["sets"].items():
        for share in (share for share in _SHARES if share in one.get("shares", {})):
            yield [name, model, share.replace("_", " "), f"{_interval(one['shares'][share])}, n = {one['total']}"]
    for role, mean in content.get("means", {}).items():
        yield [role, model, "mean exact match", _interval(mean)]


def _interval(share: Mapping[str, float]) -> str:
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name or "value", float(value)


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
        problem = f"must be a run's folder that holds {' or '.join(_EXPORTS)}, or an exported model"
        raise ActError(ConfigIssue("run", str(run), problem, "Run `fit` or `merge` first, or correct the path."))
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
        raise ActError(
            ConfigIssue("card", str(path), f"must be a readable card ({error})", "Name a README.md.")
        ) from error
    if not record:
        problem = "must hold the record of a run, as the cards of act-lightning's exports do"
        raise ActError(
            ConfigIssue("card", str(path), problem, "Name the README.md of a folder that `fit` or `merge` wrote.")
        )
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
        problem = f"must be the JSON of a transfer ({error})"
        raise ActError(ConfigIssue("transfer.json", str(path), problem, "Export the model again.")) from error


def _again(folder: Path, results: list[list[str]], verify: bool) -> str:
    recipe, record = read_card(folder)
    return Card({**record, "result": result_hashes(folder, verify)}, recipe, read_transfer(folder), results).render()


def _parsed(recipe_yaml: str) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(recipe_yaml) or {})
    except (yaml.YAMLError, ValueError, TypeError) as error:
        problem = f"must be a YAML mapping, as a config is ({error})"
        raise ActError(ConfigIssue("recipe", recipe_yaml, problem, "Give the run's config, or nothing.")) from error
