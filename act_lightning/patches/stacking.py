"""Several patches at once: which belong together, where they touch the same rows, and what they change together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.patches.file import PatchFile
from act_lightning.patches.stored import StoredTensor, Words

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
