"""Saved Fisher information of every source and of the target, read some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from act_lightning.channels import as_matrix
from act_lightning.checkpoints.files import parse_json
from act_lightning.errors import ActError, ConfigIssue

FISHER_FOLDER = "fisher"
ALIASES = "aliases"  # metadata key: maps the other names of tied parameters to the first
_GATHER_AGAIN = "Delete it, so that it is gathered again."


def source_fisher_path(root: Path, source: str, ability: str) -> Path:
    """The file of the information of a source on an ability.

    >>> source_fisher_path(Path("fisher"), "math", "science-ar").as_posix()
    'fisher/sources/math/science-ar.safetensors'
    """
    return root / "sources" / source / f"{ability}.safetensors"


def target_fisher_path(root: Path, fingerprint: str) -> Path:
    """The file of the information of the target on the samples with that fingerprint."""
    return root / "target" / f"{fingerprint[:16]}.safetensors"


class SavedFisher:
    """The Fisher information of one model: the mean over its files, weighted by their numbers of samples.

    Use it as a context manager. Files are mapped into memory; only the pages of requested rows are read.

    Args:
        files: Number of samples by file.
    """

    def __init__(self, files: Mapping[Path, int]) -> None:
        self.files = dict(files)
        self._open_files: dict[Path, tuple[Any, dict[str, str]]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> SavedFisher:
        """Open the files.

        Raises:
            ActError: One of them cannot be read.
        """
        for path in self.files:
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                problem = f"must be a readable file of Fisher information ({error})"
                raise ActError(ConfigIssue("fisher", str(path), problem, _GATHER_AGAIN)) from error
            self._open_files[path] = file, parse_json((file.metadata() or {}).get(ALIASES, "{}"))
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._open_files.clear()
        self._stack.close()

    def rows(self, name: str, numbers: Tensor) -> Tensor:
        """The Fisher information of some rows of a parameter.

        Args:
            name: The parameter's name.
            numbers: Row numbers of the parameter seen as a matrix, int64; the information of negative ones is zero.

        Returns:
            float32 ``[rows, width]``, of a vector ``[rows]``.

        Raises:
            ActError: The files lack this parameter or these rows of it, or hold NaN or infinity there.
        """
        total = sum(self.files.values())
        parts = []
        for path, (file, aliases) in self._open_files.items():
            try:
                parameter: Tensor = file.get_tensor(aliases.get(name, name))
                rows = as_matrix(parameter)[numbers.clamp(min=0)]
            except (SafetensorError, IndexError) as error:
                problem = f"must hold the Fisher information of {name} ({error})"
                raise ActError(ConfigIssue("fisher", str(path), problem, _GATHER_AGAIN)) from error
            if not bool(torch.isfinite(rows).all()):
                hint = "Delete it, and gather it in float32."
                raise ActError(ConfigIssue("fisher", str(path), f"must be finite in {name}", hint))
            parts.append(rows * (self.files[path] / total))
        mean = torch.stack(parts).sum(0)
        mean[numbers < 0] = 0
        return mean


@dataclass(frozen=True)
class TransferFisher:
    """The Fisher information that a Fisher-weighted transfer needs.

    Attributes:
        sources: Of each source, in order.
        target: Of the target.
    """

    sources: Sequence[SavedFisher]
    target: SavedFisher
