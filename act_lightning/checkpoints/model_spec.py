"""A checkpoint's parameters, ties and channels, from config and headers alone: worked out once and remembered.

Working them out takes the model's own code, and seconds to import it; a merge needs nothing else of that code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from act_lightning.architecture import tied_groups, vocabulary_parameters
from act_lightning.channels import ChannelInventory, ModuleChannels, OwnedParameter, inventory
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.models import meta_model
from act_lightning.checkpoints.weight_files import CONFIG, FLOATS, Entry
from act_lightning.defaults import cache_folder
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightRenaming


# Part of the cache's key. Raise it when map_keys, inventory or a field of ModelSpec changes what is stored.
_CACHE_VERSION = 1


@dataclass(frozen=True)
class ModelSpec:
    """What config and headers tell of a checkpoint.

    Attributes:
        model_type: The architecture, as the config names it.
        shapes: The sizes of every parameter, tied ones under each of their names, in the model's order.
        ties: Groups of names of one parameter.
        vocabulary: Names of the parameters that have a row for each token.
        keymap: Which key holds which parameter; ``None`` without weights.
        channels: The channels; ``None`` for an architecture whose weights no channel owns.
    """

    model_type: str
    shapes: dict[str, tuple[int, ...]]
    ties: tuple[tuple[str, ...], ...]
    vocabulary: tuple[str, ...]
    keymap: KeyMap | None
    channels: ChannelInventory | None


def read_model_spec(folder: Path, stored: Mapping[str, Entry] | None) -> ModelSpec:
    """Describe the checkpoint in ``folder``.

    The answer is kept below ``$ACT_LIGHTNING_CACHE`` (``~/.cache/act_lightning``) under a hash of all that it depends
    on: the config, the tensors' names, shapes and dtypes, and the code.

    Args:
        folder: A folder with a config.
        stored: Its tensors by key; ``None`` without weights.

    Raises:
        ActError: As :func:`~act_lightning.checkpoints.models.meta_model` and
            :func:`~act_lightning.checkpoints.model_spec.map_keys`.
    """
    path = cache_folder("described") / f"{_fingerprint(folder, stored)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _from_json(json.loads(path.read_bytes()))
    found = model_spec(meta_model(folder), stored, str(folder))
    with suppress(ActError):  # a cache that cannot be written is none
        write_file(path, json.dumps(asdict(found)))
    return found


def model_spec(model: PreTrainedModel, stored: Mapping[str, Entry] | None, place: str) -> ModelSpec:
    """Describe a model on any device, and where ``stored`` its checkpoint, which ``place`` names in messages."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    keymap = None if stored is None else map_keys(model, stored, place)
    channels = None
    with suppress(ActError):  # raised again by whoever needs the channels
        channels = inventory(model)
    ties, vocabulary = tied_groups(model), vocabulary_parameters(model)
    return ModelSpec(model.config.model_type, shapes, ties, vocabulary, keymap, channels)


def _fingerprint(folder: Path, stored: Mapping[str, Entry] | None) -> str:
    digest = hashlib.sha256(f"{_CACHE_VERSION} {version('transformers')}\n".encode())
    with suppress(OSError):  # a missing config is refused when it is read
        digest.update((folder / CONFIG).read_bytes())
    table = None if stored is None else [(key, entry.code, entry.shape) for key, entry in stored.items()]
    digest.update(json.dumps(table).encode())
    return digest.hexdigest()


def _from_json(values: Mapping[str, Any]) -> ModelSpec:
    ties = tuple(tuple(group) for group in values["ties"])
    keymap = values["keymap"]
    if keymap is not None:
        keymap = KeyMap(keymap["keys"], keymap["names"], tuple(keymap["others"]), ties)
    shapes = {name: tuple(shape) for name, shape in values["shapes"].items()}
    channels = values["channels"] and _channels(values["channels"])
    return ModelSpec(values["model_type"], shapes, ties, tuple(values["vocabulary"]), keymap, channels)


def _channels(values: Mapping[str, Any]) -> ChannelInventory:
    modules = tuple(
        ModuleChannels(one["name"], one["count"], tuple(OwnedParameter(**owned) for owned in one["owned"]))
        for one in values["modules"]
    )
    shapes = {name: torch.Size(shape) for name, shape in values["shapes"].items()}
    return ChannelInventory(modules, shapes, values["aliases"])


# Buffers of old checkpoints that transformers skips for every model: see _adjust_missing_and_unexpected_keys there.
_OLD_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")


_LISTED = 20


@dataclass(frozen=True)
class KeyMap:
    """How the parameters of a model are named in its checkpoint.

    Attributes:
        keys: The key of every parameter by its module name, as in ``named_parameters(remove_duplicate=False)``; tied
            parameters that are stored once share a key.
        names: The parameter of every key that holds one.
        others: Keys of what is no parameter: attention masks, rotary frequencies.
        ties: Groups of names of one parameter.
    """

    keys: dict[str, str]
    names: dict[str, str]
    others: tuple[str, ...]
    ties: tuple[tuple[str, ...], ...]


def map_keys(model: PreTrainedModel, stored: Mapping[str, Entry], place: str) -> KeyMap:
    """Find the key of every parameter of ``model`` among the ``stored`` tensors.

    Args:
        model: The causal language model, on any device; only names and shapes count.
        stored: The checkpoint's tensors by key.
        place: The checkpoint's folder, for messages.

    Raises:
        ActError: Parameters that are not stored, or fused on loading, tensors that belong to none, other shapes,
            quantized dtypes.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    ties = tied_groups(model)
    own, extra = _own_names(model, stored, shapes)
    names = {key: name for name, key in own.items()}
    others = tuple(key for key in extra if _is_ignored(model, key, extra[key]))
    aliases = {
        name: own[stored_name] for group in ties for stored_name in group if stored_name in own for name in group
    }
    keys = {name: key for name in shapes if (key := own.get(name) or aliases.get(name))}
    missing = [name for name in shapes if name not in keys]
    if missing and _fuses(model):
        raise ActError(_fused_issue(place, missing))
    raise_if_any(
        (
            *_listed(place, missing, "must hold every parameter of the model, and lacks"),
            *_listed(
                place,
                [key for key in extra if key not in others],
                "must hold parameters of the model only, and also has",
            ),
            *_wrong_tensors(place, names, stored, shapes),
        )
    )
    return KeyMap(keys, names, others, ties)


def _own_names(
    model: PreTrainedModel, stored: Iterable[str], parameters: Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The key of each parameter that is stored under its own name, and of all other keys the name the model gives."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamings = [item for item in get_model_conversion_mapping(model) if isinstance(item, WeightRenaming)]
    known = {*parameters, *(name for name, _ in model.named_buffers())}
    keys: dict[str, str] = {}
    extra: dict[str, str] = {}
    for key in stored:
        name = _rename(key, renamings, known, model.base_model_prefix)
        if name in parameters and name not in keys:
            keys[name] = key
        else:
            extra[key] = name
    return keys, extra


def _rename(key: str, renamings: Iterable[WeightRenaming], known: Collection[str], prefix: str) -> str:
    for renaming in renamings:
        key, _ = renaming.rename_source_key(key)
    bare = key.removeprefix(f"{prefix}.")
    return next((name for name in (key, bare, f"{prefix}.{key}") if name in known), key)


def _fuses(model: PreTrainedModel) -> bool:
    """Whether transformers makes some parameters of several stored tensors."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    return not all(isinstance(item, WeightRenaming) for item in get_model_conversion_mapping(model))


def _fused_issue(place: str, names: list[str]) -> ConfigIssue:
    problem = (
        f"must store parameters as the model holds them, and transformers fuses {len(names)} from several on loading"
    )
    return ConfigIssue(place, names[:5], problem, "Mixtures of experts cannot be transferred: choose a dense decoder.")


def _is_ignored(model: PreTrainedModel, key: str, name: str) -> bool:
    """Whether transformers skips the tensor without a word: a buffer, or a leftover that its model class lists."""
    if any(name == buffer for buffer, _ in model.named_buffers()):
        return True
    patterns = (*_OLD_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ()))
    return any(re.search(pattern, text) for pattern in patterns for text in (key, name))


def _wrong_tensors(
    place: str, names: Mapping[str, str], stored: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]]
) -> list[ConfigIssue]:
    reshaped = [f"{key} {stored[key].shape}" for key, name in names.items() if stored[key].shape != shapes[name]]
    quantized = [f"{key} {stored[key].code}" for key in names if stored[key].dtype not in FLOATS]
    return [
        *_listed(place, reshaped, "must hold the shapes that its config gives, unlike"),
        *_listed(place, quantized, "must hold plain floating-point weights, unlike"),
    ]


def _listed(place: str, found: list[str], problem: str) -> list[ConfigIssue]:
    if not found:
        return []
    value = f"{len(found)} tensors" if len(found) > 1 else found[0]
    problem += f" {', '.join(found[:_LISTED])}" + (f" and {len(found) - _LISTED} more" if len(found) > _LISTED else "")
    hint = "Give the folder of a plain causal language model whose config belongs to its weights."
    return [ConfigIssue(place, value, problem, hint)]
