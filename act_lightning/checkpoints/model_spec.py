"""A checkpoint's parameters, tied weights, keys and channels, from config and headers alone; cached.

Deriving them imports the model's code, which takes seconds; a merge needs nothing else of that code.
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
from typing import TYPE_CHECKING

import torch

from act_lightning.architecture import names_of_key, persistent_buffers, tied_groups, vocabulary_parameters
from act_lightning.channels import ChannelInventory, ModuleChannels, OwnedParameter, inventory
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.models import meta_model
from act_lightning.checkpoints.weight_files import CONFIG, FLOATS, Entry, Header, is_weightless, read_headers
from act_lightning.defaults import cache_folder
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Part of the cache's key. Raise it when map_keys, tied_groups, vocabulary_parameters or inventory give another result
# for the same model, or when a field of ModelSpec or of what it holds changes; not for anything else.
CACHE_VERSION = 3
# Buffers of old checkpoints that transformers ignores for every model: see _adjust_missing_and_unexpected_keys there.
_OLD_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
_MAX_LISTED = 20


@dataclass(frozen=True)
class KeyMap:
    """How the parameters of a model are named in its checkpoint.

    Attributes:
        keys: The key of every parameter by its module name, as in ``named_parameters(remove_duplicate=False)``; tied
            parameters that are stored once share a key.
        names: The parameter of every key that holds one.
        others: Keys of stored tensors that are no parameters, such as attention masks and rotary frequencies.
        buffers: The key of every buffer that the model reads from a checkpoint, by its name; it is among ``others``.
        ties: Groups of names of one parameter.
    """

    keys: dict[str, str]
    names: dict[str, str]
    others: tuple[str, ...]
    buffers: dict[str, str]
    ties: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ModelSpec:
    """What config and headers say about a checkpoint.

    Attributes:
        model_type: The architecture, as the config names it.
        shapes: The shape of every parameter, tied ones under each of their names, in the model's order.
        ties: Groups of names of one parameter.
        vocabulary: Names of the parameters that have a row for each token.
        keymap: Which key holds which parameter; ``None`` without weights.
        channels: The channels; ``None`` for an architecture without any.
    """

    model_type: str
    shapes: dict[str, tuple[int, ...]]
    ties: tuple[tuple[str, ...], ...]
    vocabulary: tuple[str, ...]
    keymap: KeyMap | None
    channels: ChannelInventory | None


def read_model_spec(folder: Path, headers: Mapping[str, Header] | None = None) -> ModelSpec:
    """The spec of the checkpoint in ``folder``, from the cache if it is there.

    The cache lies below ``$ACT_LIGHTNING_CACHE`` (``~/.cache/act_lightning``). Its key is a hash of the config, the
    tensors' names, shapes and dtypes, the version of transformers, and :data:`CACHE_VERSION`.

    Args:
        folder: The checkpoint, with or without weights.
        headers: The headers of its weight files, if they have been read; empty without weights.

    Raises:
        ActError: As :func:`~act_lightning.checkpoints.weight_files.read_headers`,
            :func:`~act_lightning.checkpoints.models.meta_model` and :func:`map_keys`.
    """
    if headers is None:
        headers = {} if is_weightless(folder) else read_headers(folder, str(folder))
    stored = {key: entry for header in headers.values() for key, entry in header.entries.items()} if headers else None
    digest = hashlib.sha256(f"{CACHE_VERSION} {version('transformers')}\n".encode())
    with suppress(OSError):  # a missing config raises when the model is built
        digest.update((folder / CONFIG).read_bytes())
    table = None if stored is None else [(key, entry.code, entry.shape) for key, entry in stored.items()]
    digest.update(json.dumps(table).encode())
    path = cache_folder("model_specs") / f"{digest.hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(path.read_bytes())
        ties = tuple(tuple(group) for group in values["ties"])
        shapes = {name: tuple(shape) for name, shape in values["shapes"].items()}
        keymap, channels = values["keymap"], values["channels"]
        if keymap is not None:
            keymap = KeyMap(keymap["keys"], keymap["names"], tuple(keymap["others"]), keymap["buffers"], ties)
        if channels is not None:
            modules = tuple(
                ModuleChannels(**{**item, "owned": tuple(OwnedParameter(**owned) for owned in item["owned"])})
                for item in channels["modules"]
            )
            all_shapes = {name: torch.Size(shape) for name, shape in channels["shapes"].items()}
            channels = ChannelInventory(modules, all_shapes, channels["aliases"], tuple(channels["unowned"]))
        return ModelSpec(values["model_type"], shapes, ties, tuple(values["vocabulary"]), keymap, channels)
    spec = model_spec(meta_model(folder), stored, str(folder))
    with suppress(ActError):  # a cache that cannot be written is not an error
        write_file(path, json.dumps(asdict(spec)))
    return spec


def model_spec(model: PreTrainedModel, stored: Mapping[str, Entry] | None, location: str) -> ModelSpec:
    """The spec of a model on any device; with ``stored``, of its checkpoint at ``location`` too."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    keymap = None if stored is None else map_keys(model, stored, location)
    channels = None
    with suppress(ActError):  # raised again when the channels are needed
        channels = inventory(model)
    ties, vocabulary = tied_groups(model), vocabulary_parameters(model)
    return ModelSpec(model.config.model_type, shapes, ties, vocabulary, keymap, channels)


def map_keys(model: PreTrainedModel, stored: Mapping[str, Entry], location: str) -> KeyMap:
    """Find the key of every parameter of ``model`` (on any device) among the ``stored`` tensors, given by key.

    Raises:
        ActError: Parameters are missing or fused when loading, tensors belong to no parameter, shapes differ, or
            weights are quantized.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    ties = tied_groups(model)
    stored_keys, extra, fuses = _match_keys(model, stored, shapes)
    buffers, persistent = {name for name, _ in model.named_buffers()}, persistent_buffers(model)
    ignored = (*_OLD_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ()))  # transformers skips these silently
    others = tuple(
        key
        for key, name in extra.items()
        if name in buffers or any(re.search(pattern, text) for pattern in ignored for text in (key, name))
    )
    aliases = {name: stored_keys[alias] for group in ties for alias in group if alias in stored_keys for name in group}
    keys = {name: key for name in shapes if (key := stored_keys.get(name) or aliases.get(name))}
    missing = [name for name in shapes if name not in keys]
    if missing and fuses:
        problem = (
            f"must store parameters as the model holds them; transformers fuses {len(missing)} from several tensors"
        )
        hint = "Mixtures of experts cannot be transferred: choose a dense decoder."
        raise ActError(ConfigIssue(location, missing[:5], problem, hint))
    names = {key: name for name, key in stored_keys.items()}
    read_buffers = {key: name for key, name in extra.items() if name in persistent}
    shapes |= {name: tuple(buffer.shape) for name, buffer in persistent.items()}
    unexpected = [key for key in extra if key not in others]
    reshaped = [
        f"{key} {stored[key].shape}"
        for key, name in (names | read_buffers).items()
        if stored[key].shape != shapes[name]
    ]
    quantized = [f"{key} {stored[key].code}" for key in names if stored[key].dtype not in FLOATS]
    raise_if_any(
        ConfigIssue(
            location,
            tensors[0] if len(tensors) == 1 else f"{len(tensors)} tensors",
            f"{problem} {summarize_names(tensors, _MAX_LISTED)}",
            "Give the folder of a plain causal language model whose config belongs to its weights.",
        )
        for tensors, problem in (
            (missing, "must hold every parameter of the model, and lacks"),
            (unexpected, "must hold parameters of the model only, and also has"),
            (reshaped, "must hold the shapes that its config gives, unlike"),
            (quantized, "must hold plain floating-point weights, unlike"),
        )
        if tensors
    )
    return KeyMap(keys, names, others, {name: key for key, name in read_buffers.items()}, ties)


def _match_keys(
    model: PreTrainedModel, stored: Iterable[str], shapes: Collection[str]
) -> tuple[dict[str, str], dict[str, str], bool]:
    """Match stored keys with parameters as transformers does when it loads a model.

    Returns:
        The key of every parameter that is stored under its own name; all other keys with the name that the model gives
        them; and whether transformers makes some parameters of several stored tensors.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    conversions = get_model_conversion_mapping(model)
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    known = {*shapes, *(name for name, _ in model.named_buffers())}
    keys: dict[str, str] = {}
    extra: dict[str, str] = {}
    for key in stored:
        name = key
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        name = next((candidate for candidate in names_of_key(model, name) if candidate in known), name)
        if name in shapes and name not in keys:
            keys[name] = key
        else:
            extra[key] = name
    return keys, extra, len(renamings) < len(conversions)


def summarize_names(names: list[str], limit: int = 5) -> str:
    """The first ``limit`` of ``names``, and how many more there are.

    >>> summarize_names(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
