"""From a base and a tuned model to a patch: one pass over both, a tensor in memory at a time."""

from __future__ import annotations

from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import act_lightning
from act_lightning.cards import read_card, read_license, read_transfer, short
from act_lightning.checkpoints import config_differences
from act_lightning.errors import ActError, Fault, refuse
from act_lightning.patches.comparison import Pair, compare, pair_tensors
from act_lightning.patches.file import PatchFile, PatchWriter, open_patch, writing_patch
from act_lightning.patches.record import PatchRecord
from act_lightning.patches.stored import weights_digest


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
    refuse(_place_faults(out, base, tuned))
    pairs = pair_tensors(base, tuned)
    with writing_patch(out) as (writer, temporary):
        hashes = _add_differences(writer, pairs)
        if not writer.tensors:
            rule = "must differ from the base, and every weight is equal"
            raise ActError(Fault("tuned", str(tuned), rule, "Give the tuned model."))
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


def _place_faults(out: Path, base: Path, tuned: Path) -> list[Fault]:
    if out.is_dir():
        return [Fault("out", str(out), "must be a file, and is a folder", "Name a file in it.")]
    if out.resolve().parent in (base.resolve(), tuned.resolve()):
        return [Fault("out", str(out), "must not stand among a model's own files", "Choose another folder.")]
    if out.exists() and not _is_patch(out):
        return [Fault("out", str(out), "must be free, or hold an earlier patch", "Choose another name.")]
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
        "base": short(names[0]),
        "tuned": short(names[1]),
        "act_lightning": act_lightning.__version__,
    }
    found["licenses"] = {short(names[0]): read_license(base)}
    found["config_differences"] = [
        {"key": one.key, "base": one.target, "tuned": one.source} for one in config_differences(base, tuned)
    ]
    with suppress(ActError):  # another program's card, or none
        found["recipe"], found["record"] = read_card(tuned)
        found["licenses"] |= {model["name"]: model["license"] for model in found["record"]["models"].values()}
    if transfer := read_transfer(tuned):
        for source in transfer.get("sources", {}).values():
            source["model"] = short(source.get("model", ""))
        found["transfer"] = transfer
    return found
