"""Where the tokenizers and chat templates of a pair differ, from their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from act_lightning.checkpoints.vocabulary import has_tokenizer, match_folders, vocabulary
from act_lightning.errors import ActError
from act_lightning.planning.problem import Level, Problem

_TEMPLATE = "chat_template.jinja"
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_SHOWN = 3


def tokenizer_problems(target: Path, source: Path, setting: str) -> list[Problem]:
    """Notes on tokens, special tokens and chat templates that differ; nothing where either has no tokenizer.

    Args:
        target: Folder of the target.
        source: Folder of the source.
        setting: Where the source was given.
    """
    if not (has_tokenizer(target) and has_tokenizer(source)):
        return []
    try:
        return _token_problems(target, source, setting) + _setting_problems(target, source, setting)
    except ActError:
        return []  # told by whoever needs them


def _token_problems(target: Path, source: Path, setting: str) -> list[Problem]:
    mine, other = vocabulary(target), vocabulary(source)
    moved = [token for token, number in mine.items() if other.get(token, number) != number]
    found = []
    if moved:
        message = f"{len(moved)} tokens have another number in the source: {_some(moved)}"
        remedy = "Rows of the vocabulary are matched by token; profiling refuses texts that the two encode differently."
        found.append(Problem("warning", setting, message, remedy))
    for names, owner in (
        (sorted(mine.keys() - other.keys()), "target"),
        (sorted(other.keys() - mine.keys()), "source"),
    ):
        if names:
            message = f"{len(names)} tokens are the {owner}'s alone: {_some(names)}"
            found.append(Problem("note", setting, message, "Nothing to do, unless the abilities' texts use them."))
    match = match_folders(target, source)
    if match is not None and match.missing:
        message = f"{match.missing} entries of the target's vocabulary have no partner in the source"
        found.append(
            Problem("note", setting, message, "Nothing to do: they keep every bit, and the report names them.")
        )
    return found


def _setting_problems(target: Path, source: Path, setting: str) -> list[Problem]:
    mine, other = _settings(target), _settings(source)
    found = []
    if mine["chat_template"] != other["chat_template"]:
        alone = "the target has none" if mine["chat_template"] is None else "the target's is used for both"
        level: Level = "warning" if mine["chat_template"] is None else "note"
        message = f"the chat templates differ: {alone}, also where the source was trained on its own"
        remedy = "Nothing to do, or write a data.template that suits both."
        found.append(Problem(level, setting, message, remedy))
    for key in _SPECIAL:
        if mine[key] != other[key]:
            message = f"{key}: {mine[key]!r} in the target, {other[key]!r} in the source"
            found.append(Problem("note", setting, message, "Nothing to do: the target's tokenizer is kept."))
    return found


def _settings(folder: Path) -> dict[str, Any]:
    """Chat template and special tokens of a tokenizer, as its files give them."""
    try:
        content = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        content = {}
    values = {key: content.get(key) for key in ("chat_template", *_SPECIAL)}
    if (folder / _TEMPLATE).is_file():
        values["chat_template"] = (folder / _TEMPLATE).read_text(encoding="utf-8")
    return {key: value.get("content") if isinstance(value, dict) else value for key, value in values.items()}


def _some(tokens: list[str]) -> str:
    return ", ".join(map(repr, tokens[:_SHOWN])) + (" …" if len(tokens) > _SHOWN else "")
