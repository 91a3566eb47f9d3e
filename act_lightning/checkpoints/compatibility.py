"""Whether two models are siblings: same architecture, same parameters, same tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from act_lightning.checkpoints.headers import is_weightless, stored_entries
from act_lightning.checkpoints.model_spec import ModelSpec, read_model_spec
from act_lightning.checkpoints.models import load_config
from act_lightning.checkpoints.vocabulary import has_tokenizer
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
