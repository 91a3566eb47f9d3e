"""Make a patch from a base and a tuned model: match their tensors, and store the bits in which they differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch

import act_lightning
from act_lightning.cards.card import read_card, read_transfer
from act_lightning.cards.record import read_license, short_name
from act_lightning.checkpoints.compatibility import config_differences
from act_lightning.checkpoints.export import bytes_bar
from act_lightning.checkpoints.files import atomic_file, no_wider_than
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import check_finite, weights_digest
from act_lightning.errors import ActError, ConfigIssue, raise_if_any, summarize_names
from act_lightning.patches.encoding import StoredTensor, Words, stored_tensors, word_of
from act_lightning.patches.patch_file import PatchFile, PatchRecord, PatchWriter, open_patch
from act_lightning.redaction import redact


@dataclass(frozen=True)
class TensorPair:
    """A tensor of the base, with its key in the base's files, and the tuned model's.

    ``name`` is the parameter's in the model, or the key if it is no parameter. ``tuned`` is the base's own tensor if
    the tuned model stores none, as of rotary frequencies.
    """

    key: str
    name: str
    base: StoredTensor
    tuned: StoredTensor


def make_patch(base: Path, tuned: Path, out: Path, names: tuple[str, str] | None = None) -> PatchFile:
    """Write the difference of ``tuned`` from ``base`` to the file ``out``.

    A patch holds weights, bit for bit, and nothing else: ``base`` keeps its config, tokenizer, shards and key names.
    After full fine-tuning every row is in it, and the patch is about as large as the model.

    ``tuned`` has the parameters and dtypes of ``base``; its shards may differ. ``names`` are those of base and tuned
    model in the patch, by default those of their folders.

    Raises:
        ActError: The two do not match or are equal, a value is NaN or infinite, or the file cannot be written.
    """
    raise_if_any(_out_issues(out, base, tuned))
    pairs = match_tensors(base, tuned)
    total = sum(pair.base.entry.size for pair in pairs)
    base_hashes, tuned_hashes = {}, {}
    with no_wider_than(base, tuned), atomic_file(out) as temporary, TemporaryFile(dir=temporary.parent) as spool:
        writer = PatchWriter(spool)
        with bytes_bar("Comparing", total) as bar:
            for pair in pairs:
                base_hashes[pair.key], tuned_hashes[pair.key], changes = compare(pair)
                if changes is not None:
                    writer.add(pair.key, pair.name, pair.base, changes)
                bar.update(pair.base.entry.size)
        if not writer.tensors:
            problem = "must differ from the base, and every weight is equal"
            raise ActError(ConfigIssue("tuned", str(tuned), problem, "Give the tuned model."))
        entries = {pair.key: pair.base.entry for pair in pairs}
        parameters = sum(prod(entry.shape) for entry in entries.values())
        provenance = _provenance(base, tuned, names or (base.resolve().name, tuned.resolve().name))
        digests = weights_digest(entries, base_hashes), weights_digest(entries, tuned_hashes)
        writer.finish(temporary, PatchRecord(*digests, parameters, writer.tensors, provenance))
    return open_patch(out)


def _out_issues(out: Path, base: Path, tuned: Path) -> list[ConfigIssue]:
    if out.is_dir():
        return [ConfigIssue("out", str(out), "must be a file, and is a folder", "Name a file in it.")]
    if out.resolve().parent in (base.resolve(), tuned.resolve()):
        return [ConfigIssue("out", str(out), "must not stand among a model's own files", "Choose another folder.")]
    if out.exists():
        try:
            open_patch(out)
        except ActError:
            return [ConfigIssue("out", str(out), "must be free, or hold an earlier patch", "Choose another name.")]
    return []


def match_tensors(base: Path, tuned: Path) -> list[TensorPair]:
    """Every stored tensor of ``base`` with its counterpart in ``tuned``, whose shards and keys may differ.

    Raises:
        ActError: Parameters are in one model only, shapes or dtypes differ, or only the tuned model has an untied head.
    """
    with CheckpointReader(base) as base_reader, CheckpointReader(tuned) as tuned_reader:
        base_map, tuned_map = base_reader.keymap, tuned_reader.keymap
    base_tensors, tuned_tensors = stored_tensors(base), stored_tensors(tuned)
    issues = []
    if unmatched := sorted({*base_reader.names} ^ {*tuned_reader.names}):
        listed = summarize_names(unmatched)
        problem = f"must have the base's parameters, and {len(unmatched)} are in one of the two only: {listed}"
        issues.append(ConfigIssue("tuned", str(tuned), problem, "Give a model tuned from this base."))
    apart = [name for name, pieces in base_map.pieces.items() if tuned_map.pieces.get(name) != pieces]
    if apart := [*apart, *(tuned_map.pieces.keys() - base_map.pieces.keys())]:
        problem = f"must store its parameters as the base does, and {summarize_names(apart)} in other tensors"
        hint = "Save both with the same version of transformers."
        issues.append(ConfigIssue("tuned", str(tuned), problem, hint))
    for names in base_map.ties:
        tuned_keys = {tuned_map.keys[name] for name in names if name in tuned_map.keys}
        if names not in tuned_map.ties and len({base_map.keys[name] for name in names}) < len(tuned_keys):
            problem = f"must tie {' and '.join(names)} as the base does, and stores them apart"
            hint = "Untie the base with transformers and save it, or tie the tuned model."
            issues.append(ConfigIssue("tuned", str(tuned), problem, hint))
    raise_if_any(issues)
    pairs = []
    for key, tensor in base_tensors.items():
        name = base_map.names.get(key, key)
        pairs.append(TensorPair(key, name, tensor, tuned_tensors.get(tuned_map.keys.get(name, key), tensor)))
    entries = [(pair.key, pair.base.entry, pair.tuned.entry) for pair in pairs]
    reshaped = [f"{key} ({b.shape}, not {a.shape})" for key, a, b in entries if a.shape != b.shape]
    cast = [f"{key} ({b.code}, not {a.code})" for key, a, b in entries if a.shape == b.shape and a.code != b.code]
    if cast:
        problem = f"must store the base's dtypes, and {summarize_names(cast)} differ"
        hint = "Export the tuned model in the base's precision (model.export_dtype: auto), then make the patch."
        issues.append(ConfigIssue("tuned", str(tuned), problem, hint))
    if reshaped:
        problem = f"must have the base's shapes, and {summarize_names(reshaped)} differ"
        hint = "Give a model of the base's shape and vocabulary."
        issues.append(ConfigIssue("tuned", str(tuned), problem, hint))
    raise_if_any(issues)
    return pairs


def compare(pair: TensorPair) -> tuple[str, str, Words | None]:
    """Read both tensors once, some rows at a time.

    Returns:
        SHA-256 of the bytes of base and tuned model, and the XOR of the two, ``[height, width]``; ``None`` if equal.

    Raises:
        ActError: Either holds NaN or infinity.
    """
    hashes, changes, first = (hashlib.sha256(), hashlib.sha256()), None, 0
    blocks = zip(_finite_blocks(pair.base, pair.key), _finite_blocks(pair.tuned, pair.key), strict=True)
    for base_block, tuned_block in blocks:
        hashes[0].update(base_block.data)
        hashes[1].update(tuned_block.data)
        difference = base_block ^ tuned_block
        if difference.any():
            changes = np.zeros(pair.base.matrix_shape, word_of(pair.base.entry.code)) if changes is None else changes
            changes[first : first + len(difference)] = difference
        first += len(difference)
    return hashes[0].hexdigest(), hashes[1].hexdigest(), changes


def _finite_blocks(tensor: StoredTensor, key: str) -> Iterator[Words]:
    first = 0
    for block in tensor.blocks():
        signed = torch.from_numpy(block.view(f"<i{block.itemsize}") if block.itemsize > 1 else block)
        index = torch.arange(first, first + len(block))
        check_finite(signed.view(tensor.entry.dtype), str(tensor.path), key, index)
        yield block
        first += len(block)


def _provenance(base: Path, tuned: Path, names: tuple[str, str]) -> dict[str, Any]:
    """Names, versions and licenses, and what the tuned folder records of its own making."""
    base_name, tuned_name = (redact(short_name(name)) for name in names)
    result: dict[str, Any] = {"base": base_name, "tuned": tuned_name, "act_lightning": act_lightning.__version__}
    result["licenses"] = {base_name: read_license(base)}
    result["config_differences"] = [
        {"key": key, "base": redact(base_value, key), "tuned": redact(tuned_value, key)}
        for key, (base_value, tuned_value) in config_differences(base, tuned).items()
    ]
    with suppress(ActError):  # the card is missing, or of another program
        result["recipe"], result["record"] = map(redact, read_card(tuned))
        result["licenses"] |= {model["name"]: model["license"] for model in result["record"]["models"].values()}
    if transfer := read_transfer(tuned):
        for source in transfer.get("sources", {}).values():
            source["model"] = short_name(source.get("model", ""))
        result["transfer"] = redact(transfer)
    return result
