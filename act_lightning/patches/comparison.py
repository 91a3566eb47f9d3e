"""Base and tuned model side by side: which stored tensors belong together, and in which bits they differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from act_lightning.checkpoints import CheckpointReader, check_finite
from act_lightning.errors import Fault, refuse
from act_lightning.patches.stored import StoredTensor, Words, stored_tensors

_LISTED = 5
_CAST = "Export the tuned model in the base's precision (model.export_dtype: auto), then make the patch."


@dataclass(frozen=True)
class Pair:
    """A tensor of the base and its partner.

    Attributes:
        key: The key in the base's files.
        name: The parameter's name in the model; the key, for what is no parameter.
        base: The base's tensor.
        tuned: The tuned model's; the base's own where the tuned model stores none, as of rotary frequencies.
    """

    key: str
    name: str
    base: StoredTensor
    tuned: StoredTensor


@dataclass(frozen=True)
class Difference:
    """How the bits of a pair differ.

    Attributes:
        base: SHA-256 of the base's bytes.
        tuned: SHA-256 of the tuned model's.
        changes: XOR of the two, ``[height, width]``; ``None`` where they are equal.
    """

    base: str
    tuned: str
    changes: Words | None


def pair_tensors(base: Path, tuned: Path) -> list[Pair]:
    """Every stored tensor of ``base`` with its partner in ``tuned``, however the latter is sharded and its keys named.

    Raises:
        ActError: Parameters without partner, other shapes or dtypes, or a head that only the tuned model has untied.
    """
    with CheckpointReader(base) as ours, CheckpointReader(tuned) as theirs:
        mine, other = stored_tensors(base), stored_tensors(tuned)
        keys, partners = ours.keymap.keys, theirs.keymap.keys
        alone = sorted(keys.keys() ^ partners.keys())
        untied = [
            group
            for group in ours.keymap.ties
            if group not in theirs.keymap.ties
            and len({keys[name] for name in group}) < len({partners[name] for name in group if name in partners})
        ]
        names = {key: ours.keymap.names.get(key, key) for key in mine}
    refuse(_alone(tuned, alone) + [_untied(tuned, group) for group in untied])
    pairs = [Pair(key, names[key], one, other.get(partners.get(names[key], key), one)) for key, one in mine.items()]
    refuse(_unlike(tuned, pairs))
    return pairs


def compare(pair: Pair) -> Difference:
    """Read both tensors once, some rows at a time.

    Raises:
        ActError: Either holds NaN or infinity.
    """
    hashes, changes, first = (hashlib.sha256(), hashlib.sha256()), None, 0
    for blocks in zip(_checked(pair.base, pair.key), _checked(pair.tuned, pair.key), strict=True):
        for digest, block in zip(hashes, blocks, strict=True):
            digest.update(block.data)
        difference = blocks[0] ^ blocks[1]
        if difference.any():
            changes = np.zeros(pair.base.grid, pair.base.word) if changes is None else changes
            changes[first : first + len(difference)] = difference
        first += len(difference)
    return Difference(hashes[0].hexdigest(), hashes[1].hexdigest(), changes)


def _checked(tensor: StoredTensor, key: str) -> Iterator[Words]:
    first = 0
    for block in tensor.blocks():
        signed = torch.from_numpy(block.view(f"<i{block.itemsize}") if block.itemsize > 1 else block)
        index = torch.arange(first, first + len(block))
        check_finite(signed.view(tensor.entry.dtype), str(tensor.path), key, index)
        yield block
        first += len(block)


def _alone(tuned: Path, names: list[str]) -> list[Fault]:
    if not names:
        return []
    rule = f"must have the base's parameters, and {len(names)} stand in one of the two only: {_some(names)}"
    return [Fault("tuned", str(tuned), rule, "Give a model tuned from this base.")]


def _untied(tuned: Path, names: tuple[str, ...]) -> Fault:
    rule = f"must tie {' and '.join(names)} as the base does, and stores them apart"
    return Fault("tuned", str(tuned), rule, "Untie the base with transformers and save it, or tie the tuned model.")


def _unlike(tuned: Path, pairs: list[Pair]) -> list[Fault]:
    cast = [f"{one.key} ({one.tuned.entry.code}, not {one.base.entry.code})" for one in pairs if _kinds(one) == (1, 0)]
    shaped = [f"{one.key} ({one.tuned.entry.shape}, not {one.base.entry.shape})" for one in pairs if not _kinds(one)[0]]
    found = []
    if cast:
        found.append(Fault("tuned", str(tuned), f"must store the base's dtypes, and {_some(cast)} differ", _CAST))
    if shaped:
        rule = f"must have the base's shapes, and {_some(shaped)} differ"
        found.append(Fault("tuned", str(tuned), rule, "Give a model of the base's shape and vocabulary."))
    return found


def _kinds(pair: Pair) -> tuple[bool, bool]:
    """Whether shapes, and dtypes, are equal."""
    return pair.base.entry.shape == pair.tuned.entry.shape, pair.base.entry.code == pair.tuned.entry.code


def _some(found: list[str]) -> str:
    return ", ".join(found[:_LISTED]) + (f" and {len(found) - _LISTED} more" if len(found) > _LISTED else "")
