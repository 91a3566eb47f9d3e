"""From a base and a tuned model to a patch: which tensors belong together, and in which bits they differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import act_lightning
from act_lightning.cards.card import read_card, read_transfer
from act_lightning.cards.record import read_license, short_name
from act_lightning.checkpoints.compatibility import config_differences
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import check_finite
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.patches.encoding import StoredTensor, Words, stored_tensors, weights_digest
from act_lightning.patches.patch_file import PatchFile, PatchRecord, PatchWriter, open_patch, writing_patch

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
    raise_if_any(_alone(tuned, alone) + [_untied(tuned, group) for group in untied])
    pairs = [Pair(key, names[key], one, other.get(partners.get(names[key], key), one)) for key, one in mine.items()]
    raise_if_any(_unlike(tuned, pairs))
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


def _alone(tuned: Path, names: list[str]) -> list[ConfigIssue]:
    if not names:
        return []
    problem = f"must have the base's parameters, and {len(names)} stand in one of the two only: {_some(names)}"
    return [ConfigIssue("tuned", str(tuned), problem, "Give a model tuned from this base.")]


def _untied(tuned: Path, names: tuple[str, ...]) -> ConfigIssue:
    problem = f"must tie {' and '.join(names)} as the base does, and stores them apart"
    return ConfigIssue(
        "tuned", str(tuned), problem, "Untie the base with transformers and save it, or tie the tuned model."
    )


def _unlike(tuned: Path, pairs: list[Pair]) -> list[ConfigIssue]:
    cast = [f"{one.key} ({one.tuned.entry.code}, not {one.base.entry.code})" for one in pairs if _kinds(one) == (1, 0)]
    shaped = [f"{one.key} ({one.tuned.entry.shape}, not {one.base.entry.shape})" for one in pairs if not _kinds(one)[0]]
    found = []
    if cast:
        found.append(ConfigIssue("tuned", str(tuned), f"must store the base's dtypes, and {_some(cast)} differ", _CAST))
    if shaped:
        problem = f"must have the base's shapes, and {_some(shaped)} differ"
        found.append(ConfigIssue("tuned", str(tuned), problem, "Give a model of the base's shape and vocabulary."))
    return found


def _kinds(pair: Pair) -> tuple[bool, bool]:
    """Whether shapes, and dtypes, are equal."""
    return pair.base.entry.shape == pair.tuned.entry.shape, pair.base.entry.code == pair.tuned.entry.code


def _some(found: list[str]) -> str:
    return ", ".join(found[:_LISTED]) + (f" and {len(found) - _LISTED} more" if len(found) > _LISTED else "")


def make_patch(base: Path, tuned: Path, out: Path, names: tuple[str, str] | None = None) -> PatchFile:
    """Write what distinguishes ``tuned`` from ``base`` to the file ``out``.

    A patch carries weights, bit for bit, and nothing else: ``base`` keeps its config, tokenizer, shards and key names.
    After full fine-tuning every row is in it, and the patch is about as large as the model.

    Args:
        base: The folder of the model to which the patch is to be applied.
        tuned: The folder of a model of the same parameters and dtypes; it may be sharded in another way.
        out: The file to be.
        names: How base and tuned model are to be called, if not by their folders' names.

    Returns:
        The patch.

    Raises:
        ActError: The two do not belong together or are equal, a value is NaN or infinite, or the file system refuses.
    """
    raise_if_any(_place_issues(out, base, tuned))
    pairs = pair_tensors(base, tuned)
    with writing_patch(out) as (writer, temporary):
        hashes = _add_differences(writer, pairs)
        if not writer.tensors:
            problem = "must differ from the base, and every weight is equal"
            raise ActError(ConfigIssue("tuned", str(tuned), problem, "Give the tuned model."))
        entries = {pair.key: pair.base.entry for pair in pairs}
        digests = [weights_digest(entries, {key: pair[which] for key, pair in hashes.items()}) for which in (0, 1)]
        parameters = sum(prod(entry.shape) for entry in entries.values())
        origin = _provenance(base, tuned, names or (base.resolve().name, tuned.resolve().name))
        writer.finish(temporary, PatchRecord(digests[0], digests[1], parameters, writer.tensors, origin))
    return open_patch(out)


def _add_differences(writer: PatchWriter, pairs: list[Pair]) -> dict[str, tuple[str, str]]:
    """Add every tensor that differs; the SHA-256 of base and tuned bytes by key."""
    hashes = {}
    total = sum(pair.base.entry.size for pair in pairs)
    with tqdm(total=total, desc="Comparing", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for pair in pairs:
            found = compare(pair)
            hashes[pair.key] = found.base, found.tuned
            if found.changes is not None:
                writer.add(pair.key, pair.name, pair.base, found.changes)
            bar.update(pair.base.entry.size)
    return hashes


def _place_issues(out: Path, base: Path, tuned: Path) -> list[ConfigIssue]:
    if out.is_dir():
        return [ConfigIssue("out", str(out), "must be a file, and is a folder", "Name a file in it.")]
    if out.resolve().parent in (base.resolve(), tuned.resolve()):
        return [ConfigIssue("out", str(out), "must not stand among a model's own files", "Choose another folder.")]
    if out.exists() and not _is_patch(out):
        return [ConfigIssue("out", str(out), "must be free, or hold an earlier patch", "Choose another name.")]
    return []


def _is_patch(path: Path) -> bool:
    try:
        open_patch(path)
    except ActError:
        return False
    return True


def _provenance(base: Path, tuned: Path, names: tuple[str, str]) -> dict[str, Any]:
    """Where the patch comes from; what the tuned folder tells of its own making is copied."""
    found: dict[str, Any] = {
        "base": short_name(names[0]),
        "tuned": short_name(names[1]),
        "act_lightning": act_lightning.__version__,
    }
    found["licenses"] = {short_name(names[0]): read_license(base)}
    found["config_differences"] = [
        {"key": one.key, "base": one.target, "tuned": one.source} for one in config_differences(base, tuned)
    ]
    with suppress(ActError):  # another program's card, or none
        found["recipe"], found["record"] = read_card(tuned)
        found["licenses"] |= {model["name"]: model["license"] for model in found["record"]["models"].values()}
    if transfer := read_transfer(tuned):
        for source in transfer.get("sources", {}).values():
            source["model"] = short_name(source.get("model", ""))
        found["transfer"] = transfer
    return found
