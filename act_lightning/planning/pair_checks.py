"""Whether two models belong together: common base, tokenizers and chat templates, from their files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from act_lightning.checkpoints.compatibility import has_tokenizer, match_vocabularies, read_vocabulary
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError
from act_lightning.planning.problem import Level, Problem

_MATRICES, _ROWS = 16, 16
_UNRELATED, _DISTANT = 0.1, 0.5
_OTHER = "Choose a source fine-tuned from the target's own base model."


@dataclass(frozen=True)
class Lineage:
    """What a sample of rows tells.

    Attributes:
        cosine: Mean cosine of a row in target and source: near 1 for siblings.
        chance: The same of rows that do not belong together, which is what unrelated models of this shape give.
        difference: ‖source − target‖ / ‖target‖ over the sample: √2 for unrelated models of one scale.
        rows: How many rows were read.
    """

    cosine: float
    chance: float
    difference: float
    rows: int

    def to_json(self) -> dict[str, float | int]:
        """As plain numbers."""
        return asdict(self)

    def problems(self, setting: str) -> list[Problem]:
        """What is to be said of this pair."""
        beside = (
            f"{self.rows} sampled rows agree with a cosine of {self.cosine:.3f}, unrelated ones with {self.chance:.3f}"
        )
        if self.difference == 0:
            message = f"{self.rows} sampled rows are equal in target and source: it has hardly anything to transfer"
            return [Problem("warning", setting, message, "Check that the two are not one model under two names.")]
        if self.cosine - self.chance < _UNRELATED:
            return [Problem("error", setting, f"the source is no sibling of the target: {beside}", _OTHER)]
        if self.cosine < _DISTANT:
            return [Problem("warning", setting, f"the source is a distant relative at best: {beside}", _OTHER)]
        return []


def lineage(target: Path, source: Path) -> Lineage | None:
    """Compare a few rows of matrices all over the two models; ``None`` where these have no matrix of one shape.

    Vocabulary matrices are left out, for their rows need not be numbered alike.

    Args:
        target: Folder of the target, with weights.
        source: Folder of the source, with weights.

    Raises:
        ActError: A value that was read is NaN or infinite, or weights are incomplete.
    """
    with CheckpointReader(target) as ours, CheckpointReader(source) as theirs:
        pairs = list(_sample(ours, theirs))
    if not pairs:
        return None
    cosines = torch.cat([_cosine(mine, other) for mine, other in pairs])
    chances = torch.cat([_cosine(mine, other.roll(1, 0)) for mine, other in pairs])
    squares = torch.stack([torch.stack([(other - mine).square().sum(), mine.square().sum()]) for mine, other in pairs])
    moved, size = squares.sum(0).tolist()
    return Lineage(float(cosines.mean()), float(chances.mean()), (moved / size) ** 0.5 if size else 0.0, len(cosines))


def _sample(ours: CheckpointReader, theirs: CheckpointReader) -> Iterator[tuple[Tensor, Tensor]]:
    """The same rows of both models, float64 ``[rows, width]``, of matrices spread over the layers."""
    tied = {name for group in ours.keymap.ties for name in group}
    names = [name for name in ours.names if _inside(ours, theirs, name) and name not in tied]
    step = max(len(names) // _MATRICES, 1)
    for name in names[::step][:_MATRICES]:
        height = ours.shape(name)[0]
        index = torch.linspace(0, height - 1, min(_ROWS, height)).long()
        yield ours.rows(name, index).double(), theirs.rows(name, index).double()


def _inside(ours: CheckpointReader, theirs: CheckpointReader, name: str) -> bool:
    """Whether ``name`` is a matrix of both, in a layer, and not a vocabulary's."""
    numbered = any(part.isdigit() for part in name.split("."))
    return numbered and len(ours.shape(name)) == 2 and name in theirs.names and ours.shape(name) == theirs.shape(name)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one, other, dim=1)


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
    mine, other = read_vocabulary(target), read_vocabulary(source)
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
    match = match_vocabularies(target, source)
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
