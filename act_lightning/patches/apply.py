"""Apply patches to a model's folder, and revert them: shards, key names and all other bits stay the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from act_lightning.cards.card import front_matter, table
from act_lightning.cards.record import CARD, common_license, license_text, short_name
from act_lightning.checkpoints.export import bytes_bar, output_issues, require_space
from act_lightning.checkpoints.files import atomic_folder, no_wider_than, reflink, wrap_os_errors, write_file
from act_lightning.checkpoints.manifest import write_manifest
from act_lightning.checkpoints.weight_files import (
    INDEX,
    Entry,
    Header,
    aux_files,
    read_header,
    read_headers,
    weights_digest,
)
from act_lightning.errors import ActError, ConfigIssue, raise_if_any, summarize_names
from act_lightning.escaping import markdown_code, markdown_text
from act_lightning.patches.encoding import StoredTensor, Words, stored_tensors
from act_lightning.patches.patch_file import PatchFile, open_patch

_OTHER_MODEL = "Name the model that the patch was made for; see `patch show`."


def apply_patch(
    model: Path,
    patches: Sequence[Path],
    out: Path,
    stack: bool = False,
    name: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write ``model`` with ``patches`` applied to the folder ``out``; write nothing if they do not fit.

    Weight files are the model's, byte for byte, but for the elements that change; config, tokenizer and the other files
    that an export copies are copied. The card is written anew, since the model's own describes other weights.

    Args:
        model: The folder of the patches' base.
        patches: One patch; or several of one base, or each made for the result of the one before.
        out: The folder to write.
        stack: Whether patches of one base may change the same elements; the later one wins.
        name: The model's name in the card; by default its folder's.
        overwrite: Whether an earlier export in ``out`` may be replaced, once the new one is complete.

    Returns:
        The digest of the weights written, see :func:`~act_lightning.checkpoints.weight_files.weights_digest`.

    Raises:
        ActError: The model is another one or has the patches already, patches are damaged or in conflict, or ``out``
            cannot be written.
    """
    stacked = _open(model, patches, out, stack, overwrite)

    def check(before: str, after: str) -> None:
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

    return _write(model, out, stacked, check, name or model.resolve().name, applied=True)


def revert_patch(
    model: Path,
    patches: Sequence[Path],
    out: Path,
    stack: bool = False,
    name: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write ``model`` without ``patches``: the inverse of :func:`apply_patch`, to the last bit.

    Exactly these patches must have been applied to the base, in this order. The digest returned is the base's.

    Raises:
        ActError: The patches are not applied to this model, or are damaged; or ``out`` cannot be written.
    """
    stacked = _open(model, patches, out, stack, overwrite)

    def check(before: str, after: str) -> None:
        if after != stacked.base or stacked.result not in (None, before):
            problem = "must have exactly these patches applied, and has " + (
                "none" if before == stacked.base else f"other weights ({before[:12]}…)"
            )
            hint = "Name every patch that was applied, in its order."
            raise ActError(ConfigIssue("model", str(model), problem, hint))

    return _write(model, out, stacked, check, name or model.resolve().name, applied=False)


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

    def check_layout(self, key: str, entry: Entry) -> None:
        """Raise an :class:`ActError` if a patch is for a tensor ``key`` of another dtype or shape."""
        for patch in self.patches:
            change = patch.record.tensors.get(key)
            if change is not None and (change.dtype, change.shape) != (entry.code, entry.shape):
                value = f"{entry.code} {entry.shape}"
                problem = f"must be stored as {change.dtype} {change.shape}, for which {patch.path.name} was made"
                raise ActError(ConfigIssue(key, value, problem, _OTHER_MODEL))

    def xor_(self, key: str, words: Words) -> None:
        """Apply all patches to a tensor's bits ``[height, width]``, in place; a second time reverts them.

        Raises:
            ActError: A patch is damaged.
        """
        for step in self.steps:
            patches = [patch for patch in step if key in patch.record.tensors]
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
    issues = _conflicts(steps, stack)
    result = steps[-1][0].record.result if len(steps[-1]) == 1 else None
    for patch in patches if result is None else ():  # else the weights that are made prove that no patch is damaged
        if not all(change.sha256 for change in patch.record.tensors.values()):
            problem = "must carry the SHA-256 of its tensors, to be applied with others of its base"
            issues.append(ConfigIssue("patch", str(patch.path), problem, "Make it again with this version."))
    raise_if_any(issues)
    return PatchStack(patches, steps, patches[0].record.base, result)


def _conflicts(steps: Sequence[Sequence[PatchFile]], stack: bool) -> list[ConfigIssue]:
    """Patches of one step that are the same, or change the same elements without ``stack``."""
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
    return issues


def _open(model: Path, patches: Sequence[Path], out: Path, stack: bool, overwrite: bool) -> PatchStack:
    """The patches, as far as they can be checked without reading the model's weights."""
    stacked = stack_patches([open_patch(path) for path in patches], stack)
    raise_if_any(output_issues(out, model, "out", overwrite=overwrite))
    tensors = stored_tensors(model)
    missing = sorted({key for patch in stacked.patches for key in patch.record.tensors} - tensors.keys())
    if missing:
        problem = f"must hold the tensors that the patch changes, and lacks {summarize_names(missing)}"
        raise ActError(ConfigIssue("model", missing[0], problem, _OTHER_MODEL))
    for key, tensor in tensors.items():
        stacked.check_layout(key, tensor.entry)
    return stacked


def _patched_card(patches: Sequence[PatchFile], model: str, digest: str, applied: bool) -> str:
    """The card of a model to which patches were applied, in this order, or from which they were reverted.

    ``model`` is how the user named it, ``digest`` that of the weights that were written.
    """
    licenses: dict[str, Any] = {}
    for patch in patches:
        licenses |= patch.record.provenance.get("licenses", {})
    base = str(patches[0].record.provenance.get("base", model))
    verb = "applied" if applied else "taken out again"
    what = "a patch" if len(patches) == 1 else "patches"
    sentence = f"{markdown_code(short_name(model))} with {what} {verb} by act-lightning."
    patch_rows = [["patch", "made from", "base", "result"]]
    for patch in patches:
        record = patch.record
        origin = f"{record.provenance.get('tuned', '')} over {record.provenance.get('base', '')}"
        patch_rows.append([patch.path.name, origin, record.base, record.result])
    license_rows = [["model", "license"], *([short_name(name), license_text(one)] for name, one in licenses.items())]
    lines = front_matter([base, *licenses], common_license(list(licenses.values())), ["act-lightning", "ability-patch"])
    lines += [f"# {markdown_text(short_name(model))}, patches {verb}", "", sentence]
    lines += [f"The weights' digest is `{digest}`.", "", *table(patch_rows), "", *table(license_rows), ""]
    return "\n".join(lines)


def _write(
    model: Path, out: Path, stacked: PatchStack, check: Callable[[str, str], None], name: str, applied: bool
) -> str:
    """Write the changed model, and return the digest of what was written.

    Every byte of the weights is read once, and hashed as it is read and as it is written. Then ``check`` is called with
    both digests; what it raises keeps the folder from appearing.
    """
    headers = read_headers(model, str(model))
    require_space(out, headers)
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    total = sum(header.data_size for header in headers.values())
    private = no_wider_than(model, *(patch.path for patch in stacked.patches))
    with private, atomic_folder(out) as folder, bytes_bar("Writing", total) as bar:
        for file, header in headers.items():
            with wrap_os_errors(out):
                for key, *digests in _write_file(model / file, folder / file, header, stacked):
                    before[key], after[key] = digests
                    bar.update(header.entries[key].size)
        entries = {key: entry for header in headers.values() for key, entry in header.entries.items()}
        check(weights_digest(entries, before), digest := weights_digest(entries, after))
        index = [model / INDEX] if (model / INDEX).is_file() else []
        for path in (*index, *aux_files(model)):
            write_file(folder / path.relative_to(model), path.read_bytes())
        write_file(folder / CARD, _patched_card(stacked.patches, name, digest, applied))
        with wrap_os_errors(out):
            write_manifest(folder)
    return digest


def _write_file(path: Path, copy: Path, header: Header, stacked: PatchStack) -> Iterator[tuple[str, str, str]]:
    """Write the changed copy of a weight file.

    Yields:
        Of each tensor its key, and the SHA-256 of its bytes before and after the change.
    """
    reflinked = reflink(path, copy)  # which nobody else changes; without one, bytes are copied as they are read
    source = copy if reflinked else path
    with source.open("rb") as reader, copy.open("r+b" if reflinked else "wb") as writer:
        writer.write(reader.read(header.data_start))
        for key, entry in header.entries.items():
            tensor = StoredTensor(source, header.data_start + entry.start, entry)
            writer.seek(tensor.start)
            if stacked.changes(key):
                words = tensor.read()
                before = hashlib.sha256(words.data).hexdigest()
                stacked.xor_(key, words)
                writer.write(words.data)
                yield key, before, hashlib.sha256(words.data).hexdigest()
            else:
                digest = hashlib.sha256()
                for block in tensor.blocks():
                    digest.update(block.data)
                    if not reflinked:
                        writer.write(block.data)
                yield key, digest.hexdigest(), digest.hexdigest()
    if read_header(copy) != header:
        problem, hint = "must not change while it is read", "Run again when it is complete."
        raise ActError(ConfigIssue(str(path), path.name, problem, hint))
