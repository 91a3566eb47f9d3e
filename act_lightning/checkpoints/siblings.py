"""Whether two models are siblings: same architecture, same parameters, same tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from act_lightning.checkpoints.models import load_config, meta_model
from act_lightning.checkpoints.names import map_keys, tied_groups
from act_lightning.checkpoints.shards import is_weightless, read_headers
from act_lightning.errors import ActError, Fault

# What says nothing about how the weights are to be used, or has a fault of its own.
_SILENT = frozenset({"architectures", "transformers_version", "_name_or_path", "use_cache", "vocab_size", "model_type"})
_LISTED = 5
_OTHER_BASE = "Choose a source fine-tuned from the target's own base model."
_RESIZE = "Resize the source with resize_token_embeddings and save it; the target's tokenizer stays in force."
_UNTIE = (
    "Untie the tied one with transformers: set config.tie_word_embeddings to False, give lm_head a copy of the "
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


def sibling_faults(target: Path, source: Path, setting: str) -> list[Fault]:
    """What keeps weights of ``source`` from being transferred into ``target``, from configs and headers only.

    Either folder may lack weights; where they are, their names and shapes are checked against the config.

    Args:
        target: Folder of the model to be improved.
        source: Folder of the model that has the ability.
        setting: Where the source was given, for messages.
    """
    models: list[PreTrainedModel] = []
    faults: list[Fault] = []
    for folder in (target, source):
        try:
            models.append(_described(folder))
        except ActError as error:
            faults.extend(error.faults)
    if faults:
        return faults
    ours, theirs = models
    kinds = ours.config.model_type, theirs.config.model_type
    if kinds[0] != kinds[1]:
        rule = f"must have the target's architecture, {kinds[0]}, and is {kinds[1]}"
        return [Fault(setting, str(source), rule, _OTHER_BASE)]
    return _parameter_faults(ours, theirs, source, setting)


def config_differences(target: Path, source: Path) -> list[ConfigDifference]:
    """Values of the two configs that differ, such as ``rope_parameters``, norm eps or context length: worth a note."""
    ours, theirs = load_config(target).to_dict(), load_config(source).to_dict()
    keys = sorted({*ours, *theirs} - _SILENT)
    return [ConfigDifference(key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)]


def tokenizer_faults(
    target: PreTrainedTokenizerBase,
    source: PreTrainedTokenizerBase,
    texts: Iterable[str],
    add_special_tokens: bool,
    setting: str,
) -> list[Fault]:
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
            return [_encoding_fault(text, ours, theirs, setting)]
    return []


def _described(folder: Path) -> PreTrainedModel:
    """The model without weights, checked against the headers where there are any."""
    model = meta_model(folder)
    if not is_weightless(folder):
        headers = read_headers(folder, str(folder))
        entries = {key: entry for header in headers.values() for key, entry in header.entries.items()}
        map_keys(model, entries, str(folder))
    return model


def _parameter_faults(ours: PreTrainedModel, theirs: PreTrainedModel, source: Path, setting: str) -> list[Fault]:
    mine, other = _shapes(ours), _shapes(theirs)
    unlike = [name for name in mine if name in other and mine[name] != other[name]]
    words = _vocabulary(ours)
    resized = [name for name in unlike if name in words and mine[name][1:] == other[name][1:]]
    faults = []
    if alone := sorted(mine.keys() ^ other.keys()):
        rule = f"must have the target's parameters, and these stand in one of the two only: {_some(alone)}"
        faults.append(Fault(setting, str(source), rule, _OTHER_BASE))
    if reshaped := [f"{name} {other[name]}, not {mine[name]}" for name in unlike if name not in resized]:
        rule = f"must have the target's shapes, and has {_some(reshaped)}"
        faults.append(Fault(setting, str(source), rule, _OTHER_BASE))
    if resized:
        sizes = f"{other[resized[0]][0]} entries where the target has {mine[resized[0]][0]}"
        rule = f"must have a vocabulary of the target's size, for entries are not matched by token: it has {sizes}"
        faults.append(Fault(setting, str(source), rule, _RESIZE))
    if bool(tied_groups(ours)) != bool(tied_groups(theirs)):
        tied = "the target's are tied and its are not" if tied_groups(ours) else "its are tied and the target's are not"
        rule = f"must tie its embedding and lm_head as the target does, and {tied}"
        faults.append(Fault(setting, str(source), rule, _UNTIE))
    return faults


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}


def _vocabulary(model: PreTrainedModel) -> set[str]:
    """The names of the parameters that have a row for each token."""
    modules: tuple[nn.Module | None, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    rows = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in rows}


def _some(found: list[str]) -> str:
    rest = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(found[:_LISTED]) + rest


def _encoding_fault(text: str, ours: list[int], theirs: list[int], setting: str) -> Fault:
    """What the first difference looks like; either list may be the start of the other."""
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    found = f"{theirs[place : place + 5]} from token {place} on where the target has {ours[place : place + 5]}"
    remedy = "Choose a source with the target's tokenizer, or a template whose text both encode alike."
    return Fault(setting, text, f"must be encoded alike by target and source, and the source gives {found}", remedy)
