"""Patches applied to a model's folder, and taken out again: shards, key names and all other bits stay."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from act_lightning.cards.record import CARD
from act_lightning.checkpoints.export import output_issues, require_space
from act_lightning.checkpoints.files import atomic_folder, reflink, wrap_os_errors, write_file
from act_lightning.checkpoints.weight_files import AUX_FILES, INDEX, read_headers
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.patches.description import patched_card
from act_lightning.patches.encoding import StoredTensor, Words, stored_tensors, weights_digest
from act_lightning.patches.patch_file import PatchFile, open_patch

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
        The digest of the weights written, see :func:`~act_lightning.patches.encoding.weights_digest`.

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
    with atomic_folder(out) as folder, _progress("Writing", tensors) as bar:
        for path, group in groupby(tensors.items(), key=lambda item: item[1].path):
            with wrap_os_errors(out):
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
    for pattern in (INDEX, *AUX_FILES):
        yield from (path for path in sorted(model.glob(pattern)) if path.is_file() and path.suffix != ".py")


def _progress(title: str, tensors: dict[str, StoredTensor]) -> tqdm[None]:
    total = sum(tensor.entry.size for tensor in tensors.values())
    return tqdm(total=total, desc=title, unit="B", unit_scale=True, leave=False, disable=None)


def _damaged(stack: Stack) -> ConfigIssue:
    names = ", ".join(patch.path.name for patch in stack.patches)
    return ConfigIssue("patch", names, "must make the weights that it promises, and makes others", "Download it again.")


_LISTED = 3


@dataclass(frozen=True)
class Stack:
    """Patches in the order in which they are applied, as XOR on the bits of one base.

    Attributes:
        steps: Patches of one base stand side by side in a step; where two of them touch an element, the last one wins.
            The first patch of the next step fits what the only patch of the step before makes.
    """

    steps: tuple[tuple[PatchFile, ...], ...]

    @property
    def patches(self) -> list[PatchFile]:
        """All of them, in order."""
        return [patch for step in self.steps for patch in step]

    @property
    def base(self) -> str:
        """Digest of the weights that they fit."""
        return self.steps[0][0].record.base

    @property
    def result(self) -> str | None:
        """Digest of the weights that they make; ``None`` where patches stand side by side, and none of them knows."""
        return self.steps[-1][0].record.result if len(self.steps[-1]) == 1 else None

    def touches(self, key: str) -> bool:
        """Whether any of them changes the tensor ``key``."""
        return any(key in patch.record.tensors for patch in self.patches)

    def xor_(self, key: str, tensor: StoredTensor, words: Words) -> None:
        """Apply all of them to the tensor ``key``, in place; once more, and it is as before.

        Args:
            key: The tensor's key.
            tensor: Its place, for dtype and shape.
            words: Its bits, ``[height, width]``.

        Raises:
            ActError: A patch is damaged, or is for a tensor of another dtype or shape.
        """
        for step in self.steps:
            users = [patch for patch in step if key in patch.record.tensors]
            _check(users, key, tensor)
            if len(users) == 1:
                cover, values = users[0].changes(key)
                cover.xor_(words, values)
            elif users:
                words ^= _side_by_side(users, key, words)


def stack_patches(patches: Sequence[PatchFile], stack: bool) -> Stack:
    """Find out how ``patches`` fit together.

    Args:
        patches: In the order in which they are, or were, applied: each fits the base of the one before, or its result.
        stack: Whether patches of one base may touch the same elements; the later one wins there.

    Raises:
        ActError: One fits neither, is given twice, or touches what another touches without ``stack``.
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
            problem = "must fit the base of the patch before it, or what that patch makes of it"
            raise ActError(ConfigIssue("patch", str(patch.path), problem, "Give patches in the order of their making."))
    raise_if_any(issue for step in steps for issue in _conflicts(step, stack))
    return Stack(tuple(map(tuple, steps)))


def _side_by_side(patches: Iterable[PatchFile], key: str, like: Words) -> Words:
    """What patches of one base change together: XOR with the base, the last one's where two touch an element."""
    total = np.zeros_like(like)
    for patch in patches:
        cover, values = patch.changes(key)
        cover.clear_(total)
        cover.xor_(total, values)
    return total


def _check(patches: Iterable[PatchFile], key: str, tensor: StoredTensor) -> None:
    for patch in patches:
        change = patch.record.tensors[key]
        if (change.dtype, change.shape) != (tensor.entry.code, tensor.entry.shape):
            found = f"{tensor.entry.code} {tensor.entry.shape}"
            problem = f"must be stored as {change.dtype} {change.shape}, for which {patch.path.name} was made"
            raise ActError(
                ConfigIssue(key, found, problem, "Name the model that the patch was made for; see `patch show`.")
            )


def _conflicts(step: Sequence[PatchFile], stack: bool) -> list[ConfigIssue]:
    issues = []
    for number, patch in enumerate(step):
        for other in step[:number]:
            if other.record.result == patch.record.result:
                problem = "must be named once"
                issues.append(ConfigIssue("patch", str(patch.path), problem, "Leave one of them out."))
            elif not stack and (shared := _shared(other, patch)):
                places = ", ".join(f"{count:,} of {key}" for key, count in list(shared.items())[:_LISTED])
                more = f" and {len(shared) - _LISTED} more tensors" if len(shared) > _LISTED else ""
                problem = f"must touch no element that {other.path.name} touches, and touches {places}{more}"
                hint = "Give --stack to apply them in this order, where the later one wins."
                issues.append(ConfigIssue("patch", str(patch.path), problem, hint))
    return issues


def _shared(one: PatchFile, other: PatchFile) -> dict[str, int]:
    """How many elements both touch, by key."""
    keys = [key for key in one.record.tensors if key in other.record.tensors]
    counts = {key: one.cover(key).meets(other.cover(key)) for key in keys}
    return {key: count for key, count in counts.items() if count}
