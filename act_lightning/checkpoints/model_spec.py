"""A checkpoint's parameters, tied weights, keys and channels, from config and headers alone; cached.

Deriving them imports the model's code, which takes seconds; a merge needs nothing else of that code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from act_lightning.architecture import (
    TOWER_KEYS,
    names_of_key,
    persistent_buffers,
    tied_groups,
    vocabulary_parameters,
)
from act_lightning.channels import ChannelInventory, ModuleChannels, OwnedParameter, inventory
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.models import meta_model
from act_lightning.checkpoints.weight_files import CONFIG, FLOATS, Entry, Header, is_weightless, read_headers
from act_lightning.defaults import cache_folder
from act_lightning.errors import ActError, ConfigIssue, raise_if_any, summarize_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter

# Part of the cache's key. Raise it when map_keys, tied_groups, vocabulary_parameters or inventory give another result
# for the same model, or when a field of ModelSpec or of what it holds changes; not for anything else.
CACHE_VERSION = 5
# Buffers of old checkpoints that transformers ignores for every model: see _adjust_missing_and_unexpected_keys there.
_OLD_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
_MAX_LISTED = 20
_TENSOR_BITS = 40  # of a row's number, which is followed by the number of the tensor that it is in


class Piece(NamedTuple):
    """Consecutive rows of a parameter, seen as a matrix, that are consecutive rows of a stored tensor, too.

    Attributes:
        row: The first of them in the parameter.
        key: The stored tensor, seen as a matrix of the parameter's width.
        stored_row: The first of them there.
        height: How many they are.
    """

    row: int
    key: str
    stored_row: int
    height: int


@dataclass(frozen=True)
class KeyMap:
    """How the parameters of a model are named in its checkpoint.

    Attributes:
        keys: The key of every parameter that is stored as it is, by its module name as in
            ``named_parameters(remove_duplicate=False)``; tied parameters that are stored once share a key.
        names: The parameter of every key that holds one.
        pieces: The pieces of every parameter that transformers makes of other tensors, such as packed experts of one
            tensor for each expert, or one that is split; by its name, in the order of its rows.
        others: Keys of stored tensors that are no parameters of the model, such as attention masks, rotary frequencies,
            and towers of other modalities.
        buffers: The key of every buffer that the model reads from a checkpoint, by its name; it is among ``others``.
        ties: Groups of names of one parameter.
    """

    keys: dict[str, str]
    names: dict[str, str]
    pieces: dict[str, tuple[Piece, ...]]
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
            pieces = {name: tuple(Piece(*piece) for piece in parts) for name, parts in keymap["pieces"].items()}
            others = tuple(keymap["others"])
            keymap = KeyMap(keymap["keys"], keymap["names"], pieces, others, keymap["buffers"], ties)
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
        ActError: Parameters are missing or rearranged when loading, tensors belong to no parameter, shapes differ, or
            weights are quantized.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    ties = tied_groups(model)
    stored_keys, extra, groups = _match_keys(model, stored, shapes)
    pieces, rearranged = dict[str, tuple[Piece, ...]](), list[str]()
    for first_name, group in groups.items():
        found = _find_pieces(model, first_name, group, {key: stored[key].shape for key in group.keys}, shapes)
        pieces |= found or {}
        if not found:
            rearranged.append(first_name)
            extra |= dict.fromkeys(group.keys, first_name)
    buffers, persistent = {name for name, _ in model.named_buffers()}, persistent_buffers(model)
    # transformers skips these silently, but for towers, of which it warns
    ignored = (*_OLD_BUFFERS, TOWER_KEYS, *(model._keys_to_ignore_on_load_unexpected or ()))
    others = tuple(
        key
        for key, name in extra.items()
        if name in buffers or any(re.search(pattern, text) for pattern in ignored for text in (key, name))
    )
    aliases = {name: stored_keys[alias] for group in ties for alias in group if alias in stored_keys for name in group}
    keys = {name: key for name in shapes if (key := stored_keys.get(name) or aliases.get(name))}
    missing = [name for name in shapes if name not in keys and name not in pieces]
    names = {key: name for name, key in stored_keys.items()}
    in_pieces = {piece.key: name for name, parts in pieces.items() for piece in parts}
    read_buffers = {key: name for key, name in extra.items() if name in persistent}
    shapes |= {name: tuple(buffer.shape) for name, buffer in persistent.items()}
    unexpected = [key for key in extra if key not in others and extra[key] not in rearranged]
    reshaped = [
        f"{key} {stored[key].shape}"
        for key, name in (names | read_buffers).items()
        if stored[key].shape != shapes[name]
    ]
    quantized = [f"{key} {stored[key].code}" for key in (*names, *in_pieces) if stored[key].dtype not in FLOATS]
    raise_if_any(
        ConfigIssue(
            location,
            tensors[0] if len(tensors) == 1 else f"{len(tensors)} tensors",
            f"{problem} {summarize_names(tensors, _MAX_LISTED)}",
            "Give the folder of a plain causal language model whose config belongs to its weights.",
        )
        for tensors, problem in (
            (rearranged, "must store rows as the model holds them, which transformers rearranges for"),
            (missing if not rearranged else [], "must hold every parameter of the model, and lacks"),
            (unexpected, "must hold parameters of the model only, and also has"),
            (reshaped, "must hold the shapes that its config gives, unlike"),
            (quantized, "must hold plain floating-point weights, unlike"),
        )
        if tensors
    )
    return KeyMap(keys, names, pieces, others, {name: key for key, name in read_buffers.items()}, ties)


def _match_keys(
    model: PreTrainedModel, stored: Iterable[str], shapes: Collection[str]
) -> tuple[dict[str, str], dict[str, str], dict[str, _ConvertedGroup]]:
    """Match stored keys with parameters as transformers does when it loads a model.

    Returns:
        The key of every parameter that is stored under its own name; all other keys with the name that the model gives
        them; and the tensors of which transformers makes one or more parameters, by the name of the first of these.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, apply_converters, dot_natural_key

    conversions = get_model_conversion_mapping(model)
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    converters = [conversion for conversion in conversions if isinstance(conversion, WeightConverter)]
    of_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known = {*shapes, *(name for name, _ in model.named_buffers())}
    keys: dict[str, str] = {}
    extra: dict[str, str] = {}
    groups: dict[str, _ConvertedGroup] = {}
    for key in sorted(stored, key=dot_natural_key):
        name = key
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        converted, pattern = apply_converters(name, converters)
        converted = next((candidate for candidate in names_of_key(model, converted) if candidate in known), converted)
        name = next((candidate for candidate in names_of_key(model, name) if candidate in known), name)
        if pattern is not None and converted in shapes:
            group = groups.setdefault(converted, _ConvertedGroup(of_pattern[pattern], {}))
            group.keys[key] = pattern
        elif name in shapes and name not in keys:
            keys[name] = key
        else:
            extra[key] = name
    return keys, extra, groups


class _ConvertedGroup(NamedTuple):
    """Stored tensors of which transformers makes parameters: how, and the pattern that matches each key, in order."""

    converter: WeightConverter
    keys: dict[str, str]


def _find_pieces(
    model: PreTrainedModel,
    name: str,
    group: _ConvertedGroup,
    stored: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[Piece, ...]] | None:
    """The pieces of the parameters that transformers makes of a group, by having it convert numbers of rows for rows.

    Args:
        model: On any device.
        name: The first of the parameters.
        group: The tensors.
        stored: The shape of each tensor by its key.
        shapes: The shapes of all parameters.

    Returns:
        The pieces by parameter; ``None`` where rows do not stay whole, or are dropped or used twice.
    """
    for vectors_are_rows in (True, False):
        converter = deepcopy(group.converter)
        for number, (key, pattern) in enumerate(group.keys.items()):
            rows: Any = _row_numbers(stored[key], number, vectors_are_rows)  # in place of a tensor that is being read
            converter.add_tensor(name, key, pattern, rows)
        try:
            converted = converter.convert(name, model=model, config=model.config)
        except Exception:  # of many operations, which expect real shapes
            continue
        pieces, used = {}, 0
        for result, values in converted.items():
            found = _read_row_numbers(values[0] if isinstance(values, list) else values, shapes.get(result, ()))
            if found is None:
                break
            tensors, numbers = found >> _TENSOR_BITS, found & ((1 << _TENSOR_BITS) - 1)
            ends = (((tensors.diff() != 0) | (numbers.diff() != 1)).nonzero().squeeze(1) + 1).tolist()
            keys, starts = list(group.keys), [0, *ends]
            pieces[result] = tuple(
                Piece(start, keys[int(tensors[start])], int(numbers[start]), end - start)
                for start, end in zip(starts, [*ends, len(found)], strict=True)
            )
            width = shapes[result][-1] if len(shapes[result]) > 1 else 1
            used += len(found.unique()) * width
        else:
            widths = {shapes[result][-1] if len(shapes[result]) > 1 else 1 for result in pieces}
            whole = all(len(shape) < 2 or {shape[-1]} == widths for shape in stored.values())
            if whole and used == sum(prod(shape) for shape in stored.values()):
                return pieces
    return None


def _row_numbers(shape: tuple[int, ...], tensor: int, vectors_are_rows: bool) -> Tensor:
    """The numbers of a tensor's rows in place of their elements, twice and plus 0 or 1, int64 ``[…, 2]``.

    Of a vector, those of its elements: ``[size]``, twice; or of itself as a row.
    """
    first = tensor << _TENSOR_BITS
    if len(shape) == 1 and not vectors_are_rows:
        return (first + torch.arange(shape[0])) * 2
    rows = first + torch.arange(prod(shape[:-1])).view(*shape[:-1], 1)
    return rows * 2 + torch.arange(2)


def _read_row_numbers(values: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The number of the stored row that each row of a parameter is; ``None`` if they did not stay whole."""
    if len(shape) == 1 and values.shape == shape and bool((values % 2 == 0).all()):
        return values >> 1
    if len(shape) < 2 or values.shape != (*shape[:-1], 2):
        return None
    first, second = values.reshape(-1, 2).unbind(1)
    return first >> 1 if bool((first % 2 == 0).all()) and torch.equal(first + 1, second) else None
