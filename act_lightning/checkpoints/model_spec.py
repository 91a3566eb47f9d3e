"""A checkpoint's parameters, ties and channels, from config and headers alone: worked out once and remembered.

Working them out takes the model's own code, and seconds to import it; a merge needs nothing else of that code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from act_lightning.architecture import tied_groups, vocabulary_parameters
from act_lightning.channels import ChannelInventory, ModuleChannels, OwnedParameter, inventory
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.headers import CONFIG, Entry
from act_lightning.checkpoints.key_mapping import KeyMap, map_keys
from act_lightning.checkpoints.models import meta_model
from act_lightning.defaults import cache_folder
from act_lightning.errors import ActError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
            :func:`~act_lightning.checkpoints.key_mapping.map_keys`.
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
