"""Patches applied to a model's folder, and taken out again: shards, key names and all other bits stay."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from tqdm.auto import tqdm

from act_lightning.cards.record import CARD
from act_lightning.checkpoints.export import output_issues, require_space
from act_lightning.checkpoints.files import reflink, replacing_folder, storing, write_file
from act_lightning.checkpoints.headers import CARRIED, INDEX, read_headers
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.patches.description import patched_card
from act_lightning.patches.file import open_patch
from act_lightning.patches.stacking import Stack, stack_patches
from act_lightning.patches.stored import StoredTensor, stored_tensors, weights_digest

_OTHER_MODEL = "Name the model that the patch was made for; see `patch show`."


def apply_patch(model: Path, patches: Sequence[Path], out: Path, stack: bool = False, name: str | None = None) -> str:
    """Write ``model`` with ``patches`` applied to the folder ``out``; nothing where they do not fit.

    Weight files are the model's, byte for byte, but for the elements that change; config, tokenizer and the other files
    that an export carries are copied. The card is written anew, as the model's own tells of other weights.

    Args:
        model: The folder of the patches' base.
        patches: One patch, or several of one base, or each made for what the one before makes.
        out: The folder to be; an earlier export there is replaced when the new one is complete.
        stack: Whether patches of one base may touch the same elements; the later one wins there.
        name: How the model is to be called in the card, if not by its folder's name.

    Returns:
        The digest of the weights written, see :func:`~act_lightning.patches.stored.weights_digest`.

    Raises:
        ActError: Another model, patches applied already, damaged or in conflict; ``out`` cannot be written.
    """
    found = stack_patches([open_patch(path) for path in patches], stack)
    raise_if_any(output_issues(out, model, "out"))
    tensors = stored_tensors(model)
    before, after = _digests(tensors, found)
    if before != found.base:
        applied = before in (found.result, *(patch.record.result for patch in found.patches))
        problem = "must be the model that the patch was made for, and " + (
            "has it applied already" if applied else f"has other weights ({before[:12]}…, not {found.base[:12]}…)"
        )
        raise ActError(ConfigIssue("model", str(model), problem, _OTHER_MODEL))
    if found.result not in (None, after):
        raise ActError(_damaged(found))
    card = patched_card(found.patches, name or model.resolve().name, after, applied=True)
    _write(model, out, tensors, found, card)
    return after


def revert_patch(model: Path, patches: Sequence[Path], out: Path, stack: bool = False, name: str | None = None) -> str:
    """Write ``model`` with ``patches`` taken out again; the inverse of :func:`apply_patch`, to the last bit.

    Args:
        model: A folder with these patches applied, and no others since.
        patches: All that were applied to the base, in that order.
        out: The folder to be.
        stack: Whether they were stacked.
        name: How the model is to be called in the card, if not by its folder's name.

    Returns:
        The digest of the weights written: that of the base.

    Raises:
        ActError: The patches are not applied to this model, or are damaged; ``out`` cannot be written.
    """
    found = stack_patches([open_patch(path) for path in patches], stack)
    raise_if_any(output_issues(out, model, "out"))
    tensors = stored_tensors(model)
    before, after = _digests(tensors, found)
    if after != found.base or found.result not in (None, before):
        problem = "must have exactly these patches applied, and has " + (
            "none" if before == found.base else f"other weights ({before[:12]}…)"
        )
        raise ActError(ConfigIssue("model", str(model), problem, "Name every patch that was applied, in its order."))
    card = patched_card(found.patches, name or model.resolve().name, after, applied=False)
    _write(model, out, tensors, found, card)
    return after


def _digests(tensors: dict[str, StoredTensor], stack: Stack) -> tuple[str, str]:
    """The digest of a model's weights, and of what they become; reads every byte once."""
    missing = sorted({key for patch in stack.patches for key in patch.record.tensors} - tensors.keys())
    if missing:
        problem = f"must hold the tensors that the patch changes, and lacks {', '.join(missing[:3])}"
        raise ActError(ConfigIssue("model", missing[0], problem, _OTHER_MODEL))
    before, after = {}, {}
    with _progress("Reading", tensors) as bar:
        for key, tensor in tensors.items():
            before[key], after[key] = _hashes(key, tensor, stack)
            bar.update(tensor.entry.size)
    entries = {key: tensor.entry for key, tensor in tensors.items()}
    return weights_digest(entries, before), weights_digest(entries, after)


def _hashes(key: str, tensor: StoredTensor, stack: Stack) -> tuple[str, str]:
    if stack.touches(key):
        words = tensor.read()
        before = hashlib.sha256(words.data).hexdigest()
        stack.xor_(key, tensor, words)
        return before, hashlib.sha256(words.data).hexdigest()
    digest = hashlib.sha256()
    for block in tensor.blocks():
        digest.update(block.data)
    return digest.hexdigest(), digest.hexdigest()


def _write(model: Path, out: Path, tensors: dict[str, StoredTensor], stack: Stack, card: str) -> None:
    require_space(out, read_headers(model))
    with replacing_folder(out) as folder, _progress("Writing", tensors) as bar:
        for path, group in groupby(tensors.items(), key=lambda item: item[1].path):
            with storing(out):
                if not reflink(path, folder / path.name):
                    shutil.copyfile(path, folder / path.name)
                for key, tensor in group:
                    if stack.touches(key):
                        _overwrite(folder / path.name, key, tensor, stack)
                    bar.update(tensor.entry.size)
        for path in _carried(model):
            write_file(folder / path.relative_to(model), path.read_bytes())
        write_file(folder / CARD, card)


def _overwrite(path: Path, key: str, tensor: StoredTensor, stack: Stack) -> None:
    words = tensor.read()
    stack.xor_(key, tensor, words)
    with path.open("r+b") as file:
        file.seek(tensor.start)
        file.write(words.data)


def _carried(model: Path) -> Iterator[Path]:
    """The files beside the weights; no code, which is never run or passed on."""
    for pattern in (INDEX, *CARRIED):
        yield from (path for path in sorted(model.glob(pattern)) if path.is_file() and path.suffix != ".py")


def _progress(title: str, tensors: dict[str, StoredTensor]) -> tqdm[None]:
    total = sum(tensor.entry.size for tensor in tensors.values())
    return tqdm(total=total, desc=title, unit="B", unit_scale=True, leave=False, disable=None)


def _damaged(stack: Stack) -> ConfigIssue:
    names = ", ".join(patch.path.name for patch in stack.patches)
    return ConfigIssue("patch", names, "must make the weights that it promises, and makes others", "Download it again.")
