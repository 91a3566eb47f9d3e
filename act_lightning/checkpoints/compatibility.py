"""Whether two models are siblings (same architecture, parameters and tokens), and how their vocabularies match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from act_lightning.checkpoints.files import parse_json
from act_lightning.checkpoints.model_spec import ModelSpec, read_model_spec
from act_lightning.checkpoints.models import load_config, load_tokenizer
from act_lightning.checkpoints.reader import read_adapter
from act_lightning.checkpoints.weight_files import identify, is_weightless
from act_lightning.errors import ActError, ConfigIssue, summarize_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Keys that do not change how weights are used, or that have an issue of their own.
_IGNORED_KEYS = {"architectures", "transformers_version", "_name_or_path", "use_cache", "vocab_size", "model_type"}
_TEXT = "_text"  # ends the type of the text's model in a type with several modalities
_TOKENIZER = "tokenizer.json"
_TOKENIZER_FILES = (_TOKENIZER, "tokenizer.model", "vocab.json", "vocab.txt")


def config_differences(target: Path, source: Path) -> dict[str, tuple[object, object]]:
    """Values of target and source where their configs differ, by key, such as ``rope_parameters`` or norm epsilon.

    After a transfer the target's still apply. Of several modalities the text's configs are compared.
    """
    target_config, source_config = (load_config(folder).get_text_config().to_dict() for folder in (target, source))
    return {
        key: (target_config.get(key), source_config.get(key))
        for key in sorted({*target_config, *source_config} - _IGNORED_KEYS)
        if target_config.get(key) != source_config.get(key)
    }


def sibling_issues(target: Path, source: Path, setting: str) -> list[ConfigIssue]:
    """Why weights of ``source`` cannot be transferred into ``target``, from configs and headers only.

    Either folder may lack weights; if it has them, their names and shapes are checked against the config. Vocabularies
    may differ in size if both folders have a tokenizer, for their entries are then matched by token.

    ``setting`` is the one that names the source, for messages.
    """
    specs: list[ModelSpec] = []
    issues: list[ConfigIssue] = []
    for folder in (target, source):
        try:
            specs.append(read_model_spec(folder))
        except ActError as error:
            issues.extend(error.issues)
    if issues:
        return issues
    target_spec, source_spec = specs
    issues = pair_issues(target_spec, source_spec, str(source), setting)
    try:
        read_adapter(source, source_spec)
    except ActError as error:
        issues.extend(error.issues)
    if not issues and same_weights(target, source):
        problem = "must not hold the target's own weights, from which nothing can be transferred"
        issues.append(ConfigIssue(setting, str(source), problem, "Name the model that has the ability."))
    vocabulary = target_spec.vocabulary
    sizes = [spec.shapes[vocabulary[0]][0] for spec in specs if set(vocabulary) <= spec.shapes.keys()]
    lacking = [str(folder) for folder in (target, source) if not (has_tokenizer(folder) or is_weightless(folder))]
    if len({*sizes}) > 1 and lacking:
        problem = (
            f"must have a tokenizer, and so must the target, for vocabularies of {sizes} entries are matched by token"
        )
        hint = f"Put the tokenizer's files into {' and '.join(lacking)}."
        issues.append(ConfigIssue(setting, str(source), problem, hint))
    return issues


def same_weights(target: Path, source: Path) -> bool:
    """Whether two folders hold the same weight files, to the byte; false if either holds none."""
    if is_weightless(target) or is_weightless(source) or identify(target).digest != identify(source).digest:
        return False
    # the digest covers the beginning of each tensor
    return target.samefile(source) or identify(target, verify=True).sha256 == identify(source, verify=True).sha256


def pair_issues(target: ModelSpec, source: ModelSpec, name: str, setting: str) -> list[ConfigIssue]:
    """Why weights of ``source`` cannot be transferred into ``target``, from their parameters' names and shapes.

    For messages, ``name`` is what the user called the source, under ``setting``.
    """
    hint = "Choose a source fine-tuned from the target's own base model."
    unmatched = sorted(target.shapes.keys() ^ source.shapes.keys())
    in_one = f"these are in one of the two only: {summarize_names(unmatched)}"
    if target.model_type != source.model_type:
        problem = f"must have the target's architecture, {target.model_type}, and is {source.model_type}"
        if target.model_type.removesuffix(_TEXT) == source.model_type.removesuffix(_TEXT):
            problem += f", of the same family: of their parameters {in_one}"
            hint = (
                "Name two checkpoints with other modalities, or two of text alone: with transformers, copy the "
                "language_model of the one into a model of the other's class, and save it."
            )
        return [ConfigIssue(setting, name, problem, hint)]
    issues = []
    if unmatched:
        problem = f"must have the target's parameters, and {in_one}"
        issues.append(ConfigIssue(setting, name, problem, hint))
    reshaped = [
        f"{parameter} {source.shapes[parameter]}, not {shape}"
        for parameter, shape in target.shapes.items()
        if parameter in source.shapes and source.shapes[parameter] != shape
        # a vocabulary may have another number of rows
        if parameter not in target.vocabulary or source.shapes[parameter][1:] != shape[1:]
    ]
    if reshaped:
        problem = f"must have the target's shapes, and has {summarize_names(reshaped)}"
        issues.append(ConfigIssue(setting, name, problem, hint))
    if target.ties and not source.ties:
        problem = "must tie its embedding and lm_head as the target does, whose single matrix cannot hold both"
        untie = (
            "Untie the target with transformers: set config.tie_word_embeddings to False, give lm_head a copy of the "
            "embedding, and save it."
        )
        issues.append(ConfigIssue(setting, name, problem, untie))
    return issues


def tokenizer_issues(
    target: PreTrainedTokenizerBase,
    source: PreTrainedTokenizerBase,
    texts: Iterable[str],
    add_special_tokens: bool,
    setting: str,
) -> list[ConfigIssue]:
    """The first of ``texts`` that the two tokenizers encode differently; entries that no text uses do not count.

    ``texts`` are what profiling will feed both models, as rendered; ``setting`` names the source, for messages.
    """
    for text in texts:
        target_ids, source_ids = (
            tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for tokenizer in (target, source)
        )
        if target_ids != source_ids:
            pairs = enumerate(zip(target_ids, source_ids, strict=False))
            # either list may be the start of the other
            at = next((i for i, (a, b) in pairs if a != b), min(len(target_ids), len(source_ids)))
            problem = (
                "must be encoded alike by target and source, and the source gives "
                f"{source_ids[at : at + 5]} from token {at} on where the target has {target_ids[at : at + 5]}"
            )
            hint = "Choose a source with the target's tokenizer, or a template whose text both encode alike."
            return [ConfigIssue(setting, text, problem, hint)]
    return []


def token_id_issues(largest: int, folder: Path, setting: str) -> list[ConfigIssue]:
    """The issue of a token id that has no row in the embedding of the model in ``folder``.

    ``largest`` is the largest id of some texts; ``setting`` names these, or the model.
    """
    rows = load_config(folder).get_text_config().vocab_size
    if largest < rows:
        return []
    problem = f"must have token ids below {rows}, the rows of the embedding of {folder.name}"
    hint = "Give the model with the tokenizer that it was trained with, or resize its embedding."
    return [ConfigIssue(setting, largest, problem, hint)]


@dataclass(frozen=True)
class VocabularyMatch:
    """For each entry of the target's vocabulary, the source's entry with the same token.

    Attributes:
        names: The target's parameters that have a row for each entry: embedding and lm_head.
        rows: The source's row for each entry, −1 where the source lacks it: int64 ``[target entries]``.
        tokens: Tokens of the target that the source lacks; their rows stay as they are.
        unnamed: Number of the target's entries without token and without match, which are padding.
    """

    names: frozenset[str]
    rows: Tensor
    tokens: tuple[str, ...] = ()
    unnamed: int = 0

    @property
    def missing(self) -> int:
        """Number of the target's entries without match."""
        return int((self.rows < 0).sum())

    def to_json(self) -> dict[str, Any]:
        """The match as it appears in reports."""
        return {"stayed": self.missing, "tokens": list(self.tokens), "without_token": self.unnamed}


def match_vocabularies(target: Path, source: Path) -> VocabularyMatch | None:
    """Match vocabulary entries by token; ``None`` if every token has the same row in both models.

    Vocabularies of one size have the same rows if their tokenizers are the same file, or one model has none. Otherwise
    rows with a token are matched by it. Rows without a token are padding, and matched by number only if both models
    have as many rows.

    Raises:
        ActError: Sizes differ, and a tokenizer is missing or broken.
    """
    spec, source_spec = (read_model_spec(folder) for folder in (target, source))
    size, source_size = (each.shapes[spec.vocabulary[0]][0] if spec.vocabulary else 0 for each in (spec, source_spec))
    if size == source_size:
        if not (has_tokenizer(target) and has_tokenizer(source)):
            return None
        pairs = ((target / name, source / name) for name in _TOKENIZER_FILES)
        a, b = next(pair for pair in pairs if any(file.is_file() for file in pair))
        if a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes():
            return None
    vocabulary = read_vocabulary(target)
    rows = match_rows(vocabulary, read_vocabulary(source), size, source_size)
    if size == source_size and torch.equal(rows, torch.arange(size)):
        return None
    token_of = {row: token for token, row in vocabulary.items()}
    missing = (rows < 0).nonzero().squeeze(1).tolist()
    tokens = tuple(token_of[row] for row in missing if row in token_of)
    return VocabularyMatch(frozenset(spec.vocabulary), rows, tokens, len(missing) - len(tokens))


def match_rows(target: Mapping[str, int], source: Mapping[str, int], size: int, source_size: int) -> Tensor:
    """The source's row for each of the target's rows, −1 if there is none: int64 ``[size]``.

    ``target`` and ``source`` give the row of each token; the sizes count rows, with those that have no token.

    >>> match_rows({"a": 0, "b": 1, "<pad>": 2}, {"b": 0, "a": 1}, 4, 2).tolist()
    [1, 0, -1, -1]
    """
    rows = torch.full((size,), -1, dtype=torch.int64)
    if size == source_size:
        named = torch.tensor(sorted({*target.values(), *source.values()}), dtype=torch.int64)
        rows = torch.arange(size)
        rows[named[named < size]] = -1
    pairs = [(row, source[token]) for token, row in target.items() if token in source]
    pairs = [(row, source_row) for row, source_row in pairs if row < size and source_row < source_size]
    if pairs:
        target_rows, source_rows = torch.tensor(pairs, dtype=torch.int64).unbind(1)
        rows[target_rows] = source_rows
    return rows


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` holds a tokenizer of any kind."""
    return any((folder / file).is_file() for file in _TOKENIZER_FILES)


def read_vocabulary(folder: Path) -> dict[str, int]:
    """The number of every token of the tokenizer in ``folder``, added tokens included.

    Raises:
        ActError: The tokenizer is missing or broken.
    """
    if not has_tokenizer(folder):
        problem = "must hold a tokenizer, by whose tokens vocabularies of different sizes are matched"
        raise ActError(ConfigIssue(str(folder), folder.name, problem, "Put the tokenizer's files into the folder."))
    try:  # without transformers, which takes seconds to import
        content = parse_json((folder / _TOKENIZER).read_bytes())
        entries = content["model"]["vocab"]
        numbers = dict(entries) if isinstance(entries, dict) else {entry[0]: i for i, entry in enumerate(entries)}
        return numbers | {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # another kind of tokenizer
        return dict(load_tokenizer(folder).get_vocab())
