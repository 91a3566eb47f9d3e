"""Which entry of a source's vocabulary is which of the target's: the same token, wherever it is numbered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from act_lightning.checkpoints.headers import stored_entries
from act_lightning.checkpoints.model_spec import ModelSpec, read_model_spec
from act_lightning.checkpoints.models import load_tokenizer
from act_lightning.errors import ActError, ConfigIssue

_TOKENIZER = "tokenizer.json"
_KINDS = (_TOKENIZER, "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class VocabularyMatch:
    """The partners of the target's entries.

    Attributes:
        names: The target's parameters that have a row for each entry: embedding and lm_head.
        rows: The source's number of each entry, −1 where the source lacks it: int64 ``[entries of the target]``.
        tokens: The target's tokens that the source lacks, which stay as they are.
        unnamed: How many of the target's entries have no token, and no partner: padding.
    """

    names: frozenset[str]
    rows: Tensor
    tokens: tuple[str, ...] = ()
    unnamed: int = 0

    @property
    def missing(self) -> int:
        """How many of the target's entries have no partner."""
        return int((self.rows < 0).sum())

    def to_json(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"stayed": self.missing, "tokens": list(self.tokens), "without_token": self.unnamed}


def match_folders(target: Path, source: Path) -> VocabularyMatch | None:
    """:func:`match_vocabulary` of two folders, with or without weights."""
    ours, theirs = (read_model_spec(folder, stored_entries(folder)) for folder in (target, source))
    return match_vocabulary(target, source, ours, theirs)


def match_vocabulary(target: Path, source: Path, ours: ModelSpec, theirs: ModelSpec) -> VocabularyMatch | None:
    """Match entries by token; ``None`` where every row has the same number in both models.

    Vocabularies of one size whose tokenizers are the same file, or of which one has none, are numbered alike. Else
    rows with a token are matched by it; rows that no tokenizer names are padding, and matched by number only where
    both models have as many rows.

    Args:
        target: Folder of the target.
        source: Folder of the source.
        ours: What the target's config and headers tell.
        theirs: What the source's tell.

    Raises:
        ActError: Sizes differ, and a tokenizer is missing or broken.
    """
    sizes = tuple(one.shapes[ours.vocabulary[0]][0] if ours.vocabulary else 0 for one in (ours, theirs))
    if sizes[0] == sizes[1] and (_same_tokenizer(target, source) or not all(map(has_tokenizer, (target, source)))):
        return None
    mine, other = vocabulary(target), vocabulary(source)
    rows = match_rows(mine, other, *sizes)
    if sizes[0] == sizes[1] and torch.equal(rows, torch.arange(sizes[0])):
        return None
    named = {number: token for token, number in mine.items()}
    missing = (rows < 0).nonzero().squeeze(1).tolist()
    tokens = tuple(named[number] for number in missing if number in named)
    return VocabularyMatch(frozenset(ours.vocabulary), rows, tokens, len(missing) - len(tokens))


def match_rows(target: Mapping[str, int], source: Mapping[str, int], size: int, source_size: int) -> Tensor:
    """The source's row of each of the target's rows, −1 where there is none: int64 ``[size]``.

    Args:
        target: The target's tokens with their numbers.
        source: The source's.
        size: How many rows the target has.
        source_size: How many the source has.

    >>> match_rows({"a": 0, "b": 1, "<pad>": 2}, {"b": 0, "a": 1}, 4, 2).tolist()
    [1, 0, -1, -1]
    """
    rows = torch.full((size,), -1, dtype=torch.int64)
    if size == source_size:
        named = torch.tensor(sorted({*target.values(), *source.values()}), dtype=torch.int64)
        rows = torch.arange(size)
        rows[named[named < size]] = -1
    pairs = [(number, source[token]) for token, number in target.items() if token in source]
    pairs = [(mine, other) for mine, other in pairs if mine < size and other < source_size]
    if pairs:
        mine, other = torch.tensor(pairs, dtype=torch.int64).unbind(1)
        rows[mine] = other
    return rows


def vocabulary(folder: Path) -> dict[str, int]:
    """The number of every token of the tokenizer in ``folder``, added ones included.

    Raises:
        ActError: There is no tokenizer, or it is broken.
    """
    if not has_tokenizer(folder):
        problem = "must hold a tokenizer, by whose tokens vocabularies of different sizes are matched"
        raise ActError(ConfigIssue(str(folder), folder.name, problem, "Put the tokenizer's files into the folder."))
    try:
        return _read_vocabulary(folder / _TOKENIZER)
    except (OSError, ValueError, KeyError, TypeError):  # of another kind: transformers knows them all
        return dict(load_tokenizer(folder).get_vocab())


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` holds a tokenizer of any kind."""
    return any((folder / kind).is_file() for kind in _KINDS)


def _read_vocabulary(path: Path) -> dict[str, int]:
    """The vocabulary of a ``tokenizer.json`` without transformers, which takes seconds to import."""
    content = json.loads(path.read_bytes())
    entries = content["model"]["vocab"]
    numbers = dict(entries) if isinstance(entries, dict) else {entry[0]: i for i, entry in enumerate(entries)}
    return numbers | {token["content"]: token["id"] for token in content.get("added_tokens", [])}


def _same_tokenizer(target: Path, source: Path) -> bool:
    """Whether the first kind of tokenizer that either holds is the same file in both."""
    for kind in _KINDS:
        ours, theirs = target / kind, source / kind
        if ours.is_file() or theirs.is_file():
            return ours.is_file() and theirs.is_file() and ours.read_bytes() == theirs.read_bytes()
    return True
