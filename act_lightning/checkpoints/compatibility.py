"""Whether two models are siblings: same architecture, same parameters, same tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from act_lightning.checkpoints.model_spec import ModelSpec, read_model_spec
from act_lightning.checkpoints.models import load_config, load_tokenizer
from act_lightning.checkpoints.weight_files import is_weightless, stored_entries
from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# What says nothing about how the weights are to be used, or has a issue of its own.
_SILENT = frozenset({"architectures", "transformers_version", "_name_or_path", "use_cache", "vocab_size", "model_type"})
_LISTED = 5
_OTHER_BASE = "Choose a source fine-tuned from the target's own base model."
_UNTIE = (
    "Untie the target with transformers: set config.tie_word_embeddings to False, give lm_head a copy of the "
    "embedding, and save it."
)


@dataclass(frozen=True)
class ConfigDifference:
    """One value that differs between two configs; the target's is the one that stays in force.

    Attributes:
        key: The name in the config.
        target: The target's value.
        source: The source's value.
    """

    key: str
    target: object
    source: object

    def __str__(self) -> str:
        """On one line.

        >>> print(ConfigDifference("rms_norm_eps", 1e-06, 1e-05))
        rms_norm_eps: 1e-06 in the target, 1e-05 in the source
        """
        return f"{self.key}: {self.target!r} in the target, {self.source!r} in the source"


def sibling_issues(target: Path, source: Path, setting: str) -> list[ConfigIssue]:
    """What keeps weights of ``source`` from being transferred into ``target``, from configs and headers only.

    Either folder may lack weights; where they are, their names and shapes are checked against the config.
    Vocabularies may differ in size where both have a tokenizer, by whose tokens their entries are matched.

    Args:
        target: Folder of the model to be improved.
        source: Folder of the model that has the ability.
        setting: Where the source was given, for messages.
    """
    found: list[ModelSpec] = []
    issues: list[ConfigIssue] = []
    for folder in (target, source):
        try:
            found.append(read_model_spec(folder, stored_entries(folder)))
        except ActError as error:
            issues.extend(error.issues)
    if issues:
        return issues
    ours, theirs = found
    return pair_issues(ours, theirs, str(source), setting) + _vocabulary_issues(target, source, ours, theirs, setting)


def pair_issues(ours: ModelSpec, theirs: ModelSpec, source: str, setting: str) -> list[ConfigIssue]:
    """What keeps weights from being transferred between two models, from their parameters' names and shapes.

    Args:
        ours: The target.
        theirs: The source.
        source: How the source was named.
        setting: Where it was given, for messages.
    """
    if ours.model_type != theirs.model_type:
        problem = f"must have the target's architecture, {ours.model_type}, and is {theirs.model_type}"
        return [ConfigIssue(setting, source, problem, _OTHER_BASE)]
    mine, other = ours.shapes, theirs.shapes
    issues = []
    if alone := sorted(mine.keys() ^ other.keys()):
        problem = f"must have the target's parameters, and these stand in one of the two only: {_some(alone)}"
        issues.append(ConfigIssue(setting, source, problem, _OTHER_BASE))
    if reshaped := [f"{name} {other[name]}, not {mine[name]}" for name in _unlike(ours, theirs)]:
        problem = f"must have the target's shapes, and has {_some(reshaped)}"
        issues.append(ConfigIssue(setting, source, problem, _OTHER_BASE))
    if ours.ties and not theirs.ties:
        problem = "must tie its embedding and lm_head as the target does, whose single matrix cannot take both of its"
        issues.append(ConfigIssue(setting, source, problem, _UNTIE))
    return issues


def _unlike(ours: ModelSpec, theirs: ModelSpec) -> list[str]:
    """Parameters of both whose shapes differ in more than the number of vocabulary entries."""
    return [
        name
        for name, shape in ours.shapes.items()
        if name in theirs.shapes and theirs.shapes[name] != shape
        if name not in ours.vocabulary or theirs.shapes[name][1:] != shape[1:]
    ]


def _vocabulary_issues(
    target: Path, source: Path, ours: ModelSpec, theirs: ModelSpec, setting: str
) -> list[ConfigIssue]:
    sizes = [one.shapes[ours.vocabulary[0]][0] for one in (ours, theirs) if set(ours.vocabulary) <= one.shapes.keys()]
    if len({*sizes}) <= 1:
        return []
    lacking = [str(folder) for folder in (target, source) if not (has_tokenizer(folder) or is_weightless(folder))]
    if not lacking:
        return []
    problem = f"must have a tokenizer, and so must the target, for vocabularies of {sizes} entries are matched by token"
    return [ConfigIssue(setting, str(source), problem, f"Put the tokenizer's files into {' and '.join(lacking)}.")]


def config_differences(target: Path, source: Path) -> list[ConfigDifference]:
    """Values of the two configs that differ, such as ``rope_parameters``, norm eps or context length: worth a note."""
    ours, theirs = load_config(target).to_dict(), load_config(source).to_dict()
    keys = sorted({*ours, *theirs} - _SILENT)
    return [ConfigDifference(key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)]


def tokenizer_issues(
    target: PreTrainedTokenizerBase,
    source: PreTrainedTokenizerBase,
    texts: Iterable[str],
    add_special_tokens: bool,
    setting: str,
) -> list[ConfigIssue]:
    """The first of ``texts`` that the two tokenizers encode differently; entries that no text uses do not count.

    Args:
        target: The target's tokenizer.
        source: The source's tokenizer.
        texts: What profiling will feed both models, as rendered.
        add_special_tokens: Whether special tokens are added, as profiling will.
        setting: Where the source was given, for messages.
    """
    for text in texts:
        ours, theirs = (
            tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for tokenizer in (target, source)
        )
        if ours != theirs:
            return [_encoding_issue(text, ours, theirs, setting)]
    return []


def _some(found: list[str]) -> str:
    rest = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(found[:_LISTED]) + rest


def _encoding_issue(text: str, ours: list[int], theirs: list[int], setting: str) -> ConfigIssue:
    """What the first difference looks like; either list may be the start of the other."""
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    found = f"{theirs[place : place + 5]} from token {place} on where the target has {ours[place : place + 5]}"
    hint = "Choose a source with the target's tokenizer, or a template whose text both encode alike."
    return ConfigIssue(setting, text, f"must be encoded alike by target and source, and the source gives {found}", hint)


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


def match_vocabularies(target: Path, source: Path) -> VocabularyMatch | None:
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
    mine, other = read_vocabulary(target), read_vocabulary(source)
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


def read_vocabulary(folder: Path) -> dict[str, int]:
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
