"""Apply patches to a model's folder, and revert them: shards, key names and all other bits stay the same."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from act_lightning.cards.card import front_matter, table
from act_lightning.cards.record import CARD, common_license, license_text, short_name
from act_lightning.checkpoints.export import output_issues, progress_bar, require_space
from act_lightning.checkpoints.files import atomic_folder, reflink, wrap_os_errors, write_file
from act_lightning.checkpoints.model_spec import summarize_names
from act_lightning.checkpoints.weight_files import INDEX, aux_files, read_headers
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.patches.encoding import StoredTensor, Words, stored_tensors, weights_digest
from act_lightning.patches.patch_file import PatchFile, open_patch

_OTHER_MODEL = "Name the model that the patch was made for; see `patch show`."


def apply_patch(model: Path, patches: Sequence[Path], out: Path, stack: bool = False, name: str | None = None) -> str:
    """Write ``model`` with ``patches`` applied to the folder ``out``; write nothing if they do not fit.

    Weight files are the model's, byte for byte, but for the elements that change; config, tokenizer and the other files
    that an export copies are copied. The card is written anew, since the model's own describes other weights.

    Args:
        model: The folder of the patches' base.
        patches: One patch; or several of one base, or each made for the result of the one before.
        out: The folder to write; an earlier export is replaced when the new one is complete.
        stack: Whether patches of one base may change the same elements; the later one wins.
        name: The model's name in the card; by default its folder's.

    Returns:
        The digest of the weights written, see :func:`~act_lightning.patches.encoding.weights_digest`.

    Raises:
        ActError: The model is another one or has the patches already, patches are damaged or in conflict, or ``out``
            cannot be written.
    """
    stacked, tensors, before, after = _open(model, patches, out, stack)
    if before != stacked.base:
        applied = before in (stacked.result, *(patch.record.result for patch in stacked.patches))
        problem = "must be the model that the patch was made for, and " + (
            "has it applied already" if applied else f"has other weights ({before[:12]}…, not {stacked.base[:12]}…)"
        )
        raise ActError(ConfigIssue("model", str(model), problem, _OTHER_MODEL))
    if stacked.result not in (None, after):
        names = ", ".join(patch.path.name for patch in stacked.patches)
        problem = "must make the weights that it promises, and makes others"
        raise ActError(ConfigIssue("patch", names, problem, "Download it again."))
    card = _patched_card(stacked.patches, name or model.resolve().name, after, applied=True)
    _write(model, out, tensors, stacked, card)
    return after


def revert_patch(model: Path, patches: Sequence[Path], out: Path, stack: bool = False, name: str | None = None) -> str:
    """Write ``model`` without ``patches``: the inverse of :func:`apply_patch`, to the last bit.

    Exactly these patches must have been applied to the base, in this order. The digest returned is the base's.

    Raises:
        ActError: The patches are not applied to this model, or are damaged; or ``out`` cannot be written.
    """
    stacked, tensors, before, after = _open(model, patches, out, stack)
    if after != stacked.base or stacked.result not in (None, before):
        problem = "must have exactly these patches applied, and has " + (
            "none" if before == stacked.base else f"other weights ({before[:12]}…)"
        )
        raise ActError(ConfigIssue("model", str(model), problem, "Name every patch that was applied, in its order."))
    card = _patched_card(stacked.patches, name or model.resolve().name, after, applied=False)
    _write(model, out, tensors, stacked, card)
    return after


@dataclass(frozen=True)
class PatchStack:
    """Patches in the order in which they are applied, as XOR on the bits of one base.

    Attributes:
        patches: All patches, in order.
        steps: The patches of a step have one base; if two of them change an element, the last one wins. The next step
            fits the result of the only patch in the step before.
        base: Digest of the weights that they fit.
        result: Digest of the weights that they make; ``None`` if the last step has several patches.
    """

    patches: Sequence[PatchFile]
    steps: Sequence[Sequence[PatchFile]]
    base: str
    result: str | None

    def changes(self, key: str) -> bool:
        """Whether any of them changes the tensor ``key``."""
        return any(key in patch.record.tensors for patch in self.patches)

    def xor_(self, key: str, tensor: StoredTensor, words: Words) -> None:
        """Apply all patches to a tensor's bits ``[height, width]``, in place; a second time reverts them.

        Raises:
            ActError: A patch is damaged, or is for a tensor of another dtype or shape.
        """
        for step in self.steps:
            patches = [patch for patch in step if key in patch.record.tensors]
            for patch in patches:
                change = patch.record.tensors[key]
                if (change.dtype, change.shape) != (tensor.entry.code, tensor.entry.shape):
                    value = f"{tensor.entry.code} {tensor.entry.shape}"
                    problem = f"must be stored as {change.dtype} {change.shape}, for which {patch.path.name} was made"
                    raise ActError(ConfigIssue(key, value, problem, _OTHER_MODEL))
            if len(patches) == 1:
                region, values = patches[0].changes(key)
                region.xor_(words, values)
            elif patches:  # each XORs with the same base, and the last one wins if two change an element
                total = np.zeros_like(words)
                for region, values in (patch.changes(key) for patch in patches):
                    region.clear_(total)
                    region.xor_(total, values)
                words ^= total


def stack_patches(patches: Sequence[PatchFile], stack: bool) -> PatchStack:
    """Sort ``patches`` into steps.

    Args:
        patches: In the order in which they are, or were, applied: each fits the base of the one before, or its result.
        stack: Whether patches of one base may change the same elements; the later one wins.

    Raises:
        ActError: A patch fits neither, is given twice, or changes elements that another changes without ``stack``.
    """
    if not patches:
        raise ActError(ConfigIssue("patch", None, "must name a patch", "Give one with --patch."))
    steps = [[patches[0]]]
    for patch in patches[1:]:
        last = steps[-1]
        if patch.record.base == last[0].record.base:
            last.append(patch)
        elif len(last) == 1 and patch.record.base == last[0].record.result:
            steps.append([patch])
        else:
            problem = "must fit the base of the patch before it, or the result of that patch"
            raise ActError(ConfigIssue("patch", str(patch.path), problem, "Give patches in the order of their making."))
    issues = []
    pairs = ((first, second) for step in steps for number, second in enumerate(step) for first in step[:number])
    for first, second in pairs:
        if first.record.result == second.record.result:
            hint = "Leave one of them out."
            issues.append(ConfigIssue("patch", str(second.path), "must be named once", hint))
        elif not stack:
            common = [key for key in first.record.tensors if key in second.record.tensors]
            counts = {key: first.region(key).overlap(second.region(key)) for key in common}
            if overlaps := [f"{count:,} of {key}" for key, count in counts.items() if count]:
                listed = summarize_names(overlaps, 3)
                problem = f"must touch no element that {first.path.name} touches, and touches {listed}"
                hint = "Give --stack to apply them in this order, where the later one wins."
                issues.append(ConfigIssue("patch", str(second.path), problem, hint))
    raise_if_any(issues)
    result = steps[-1][0].record.result if len(steps[-1]) == 1 else None
    return PatchStack(patches, steps, patches[0].record.base, result)


def _open(
    model: Path, patches: Sequence[Path], out: Path, stack: bool
) -> tuple[PatchStack, dict[str, StoredTensor], str, str]:
    """The patches, the model's tensors, and the digests of its weights and of the result; reads every byte once."""
    stacked = stack_patches([open_patch(path) for path in patches], stack)
    raise_if_any(output_issues(out, model, "out"))
    tensors = stored_tensors(model)
    missing = sorted({key for patch in stacked.patches for key in patch.record.tensors} - tensors.keys())
    if missing:
        problem = f"must hold the tensors that the patch changes, and lacks {summarize_names(missing)}"
        raise ActError(ConfigIssue("model", missing[0], problem, _OTHER_MODEL))
    before, after = {}, {}
    with progress_bar("Reading", sum(tensor.entry.size for tensor in tensors.values())) as bar:
        for key, tensor in tensors.items():
            if stacked.changes(key):
                words = tensor.read()
                before[key] = hashlib.sha256(words.data).hexdigest()
                stacked.xor_(key, tensor, words)
                after[key] = hashlib.sha256(words.data).hexdigest()
            else:
                digest = hashlib.sha256()
                for block in tensor.blocks():
                    digest.update(block.data)
                before[key] = after[key] = digest.hexdigest()
            bar.update(tensor.entry.size)
    entries = {key: tensor.entry for key, tensor in tensors.items()}
    return stacked, tensors, weights_digest(entries, before), weights_digest(entries, after)


def _patched_card(patches: Sequence[PatchFile], model: str, digest: str, applied: bool) -> str:
    """The card of a model to which patches were applied, in this order, or from which they were reverted.

    ``model`` is how the user named it, ``digest`` that of the weights that were written.
    """
    licenses: dict[str, Any] = {}
    for patch in patches:
        licenses |= patch.record.provenance.get("licenses", {})
    base = str(patches[0].record.provenance.get("base", model))
    verb = "applied" if applied else "taken out again"
    sentence = f"`{short_name(model)}` with {'a patch' if len(patches) == 1 else 'patches'} {verb} by act-lightning."
    patch_rows = [["patch", "made from", "base", "result"]]
    for patch in patches:
        record = patch.record
        origin = f"{record.provenance.get('tuned', '')} over {record.provenance.get('base', '')}"
        patch_rows.append([patch.path.name, origin, record.base, record.result])
    license_rows = [["model", "license"], *([short_name(name), license_text(one)] for name, one in licenses.items())]
    lines = front_matter([base, *licenses], common_license(list(licenses.values())), ["act-lightning", "ability-patch"])
    lines += [f"# {short_name(model)}, patches {verb}", "", sentence]
    lines += [f"The weights' digest is `{digest}`.", "", *table(patch_rows), "", *table(license_rows), ""]
    return "\n".join(lines)


def _write_changed(path: Path, key: str, tensor: StoredTensor, stacked: PatchStack) -> None:
    """Overwrite a tensor in a copy of its file."""
    words = tensor.read()
    stacked.xor_(key, tensor, words)
    with path.open("r+b") as file:
        file.seek(tensor.start)
        file.write(words.data)


def _write(model: Path, out: Path, tensors: dict[str, StoredTensor], stacked: PatchStack, card: str) -> None:
    require_space(out, read_headers(model))
    total = sum(tensor.entry.size for tensor in tensors.values())
    with atomic_folder(out) as folder, progress_bar("Writing", total) as bar:
        for path, group in groupby(tensors.items(), key=lambda item: item[1].path):
            copy = folder / path.name
            with wrap_os_errors(out):
                if not reflink(path, copy):
                    shutil.copyfile(path, copy)
                for key, tensor in group:
                    if stacked.changes(key):
                        _write_changed(copy, key, tensor, stacked)
                    bar.update(tensor.entry.size)
        index = [model / INDEX] if (model / INDEX).is_file() else []
        for path in (*index, *aux_files(model)):
            write_file(folder / path.relative_to(model), path.read_bytes())
        write_file(folder / CARD, card)
