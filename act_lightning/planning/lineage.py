"""Whether two models come from one base: how alike a few of their rows are, beside rows that have nothing in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from act_lightning.checkpoints import CheckpointReader
from act_lightning.planning.problem import Problem

_MATRICES, _ROWS = 16, 16
_UNRELATED, _DISTANT = 0.1, 0.5
_OTHER = "Choose a source fine-tuned from the target's own base model."


@dataclass(frozen=True)
class Lineage:
    """What a sample of rows tells.

    Attributes:
        cosine: Mean cosine of a row in target and source: near 1 for siblings.
        chance: The same of rows that do not belong together, which is what unrelated models of this shape give.
        difference: ‖source − target‖ / ‖target‖ over the sample: √2 for unrelated models of one scale.
        rows: How many rows were read.
    """

    cosine: float
    chance: float
    difference: float
    rows: int

    def to_json(self) -> dict[str, float | int]:
        """As plain numbers."""
        return asdict(self)

    def problems(self, setting: str) -> list[Problem]:
        """What is to be said of this pair."""
        beside = (
            f"{self.rows} sampled rows agree with a cosine of {self.cosine:.3f}, unrelated ones with {self.chance:.3f}"
        )
        if self.difference == 0:
            message = f"{self.rows} sampled rows are equal in target and source: it has hardly anything to transfer"
            return [Problem("warning", setting, message, "Check that the two are not one model under two names.")]
        if self.cosine - self.chance < _UNRELATED:
            return [Problem("error", setting, f"the source is no sibling of the target: {beside}", _OTHER)]
        if self.cosine < _DISTANT:
            return [Problem("warning", setting, f"the source is a distant relative at best: {beside}", _OTHER)]
        return []


def lineage(target: Path, source: Path) -> Lineage | None:
    """Compare a few rows of matrices all over the two models; ``None`` where these have no matrix of one shape.

    Vocabulary matrices are left out, for their rows need not be numbered alike.

    Args:
        target: Folder of the target, with weights.
        source: Folder of the source, with weights.

    Raises:
        ActError: A value that was read is NaN or infinite, or weights are incomplete.
    """
    with CheckpointReader(target) as ours, CheckpointReader(source) as theirs:
        pairs = list(_sample(ours, theirs))
    if not pairs:
        return None
    cosines = torch.cat([_cosine(mine, other) for mine, other in pairs])
    chances = torch.cat([_cosine(mine, other.roll(1, 0)) for mine, other in pairs])
    squares = torch.stack([torch.stack([(other - mine).square().sum(), mine.square().sum()]) for mine, other in pairs])
    moved, size = squares.sum(0).tolist()
    return Lineage(float(cosines.mean()), float(chances.mean()), (moved / size) ** 0.5 if size else 0.0, len(cosines))


def _sample(ours: CheckpointReader, theirs: CheckpointReader) -> Iterator[tuple[Tensor, Tensor]]:
    """The same rows of both models, float64 ``[rows, width]``, of matrices spread over the layers."""
    tied = {name for group in ours.keymap.ties for name in group}
    names = [name for name in ours.names if _inside(ours, theirs, name) and name not in tied]
    step = max(len(names) // _MATRICES, 1)
    for name in names[::step][:_MATRICES]:
        height = ours.shape(name)[0]
        index = torch.linspace(0, height - 1, min(_ROWS, height)).long()
        yield ours.rows(name, index).double(), theirs.rows(name, index).double()


def _inside(ours: CheckpointReader, theirs: CheckpointReader, name: str) -> bool:
    """Whether ``name`` is a matrix of both, in a layer, and not a vocabulary's."""
    numbered = any(part.isdigit() for part in name.split("."))
    return numbered and len(ours.shape(name)) == 2 and name in theirs.names and ours.shape(name) == theirs.shape(name)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one, other, dim=1)
