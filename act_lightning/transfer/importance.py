"""Saved Fisher information, read some rows at a time: of every source, and of the target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from act_lightning.errors import ActError, ConfigIssue

FOLDER = "fisher"
ALIASES = "aliases"  # metadata: under which other names tied parameters are known


class SavedFisher:
    """The Fisher information of one model: the mean over its files, each counting with its samples.

    Use it as a context manager. Files are mapped into memory, and only the pages of rows that are asked for are read.

    Args:
        files: Number of samples by file.
    """

    def __init__(self, files: Mapping[Path, int]) -> None:
        self.files = dict(files)
        self._opened: list[tuple[Path, Any, dict[str, str]]] = []
        self._open = ExitStack()

    def __enter__(self) -> SavedFisher:
        """Open the files.

        Raises:
            ActError: One of them cannot be read.
        """
        for path in self.files:
            try:
                file = self._open.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                problem = f"must be a readable file of Fisher information ({error})"
                raise ActError(
                    ConfigIssue("fisher", str(path), problem, "Delete it, so that it is gathered again.")
                ) from error
            self._opened.append((path, file, json.loads((file.metadata() or {}).get(ALIASES, "{}"))))
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._opened.clear()
        self._open.close()

    def rows(self, name: str, numbers: Tensor) -> Tensor:
        """The Fisher information of some rows of a parameter.

        Args:
            name: The parameter's name.
            numbers: Numbers of rows, int64; where one is negative, the information is zero.

        Returns:
            float32 ``[rows, …]``.

        Raises:
            ActError: The files do not hold this parameter, or not these rows of it, or a value is no finite number.
        """
        total = sum(self.files.values())
        parts = [self._rows(*opened, name, numbers) * (self.files[opened[0]] / total) for opened in self._opened]
        mean = torch.stack(parts).sum(0)
        mean[numbers < 0] = 0
        return mean

    @staticmethod
    def _rows(path: Path, file: Any, aliases: Mapping[str, str], name: str, numbers: Tensor) -> Tensor:  # noqa: ANN401
        try:
            whole: Tensor = file.get_tensor(aliases.get(name, name))
            found = whole[numbers.clamp(min=0)]
        except (SafetensorError, IndexError) as error:
            problem = f"must hold the Fisher information of {name} ({error})"
            raise ActError(
                ConfigIssue("fisher", str(path), problem, "Delete it, so that it is gathered again.")
            ) from error
        if not bool(torch.isfinite(found).all()):
            problem = f"must be finite in {name}"
            raise ActError(ConfigIssue("fisher", str(path), problem, "Delete it, and gather it in float32."))
        return found


@dataclass(frozen=True)
class Importance:
    """What a Fisher-weighted transfer needs beside the models.

    Attributes:
        sources: Of each source, in order.
        target: Of the target.
    """

    sources: Sequence[SavedFisher]
    target: SavedFisher


def source_path(root: Path, source: str, ability: str) -> Path:
    """Where the information of a source on an ability stands.

    >>> source_path(Path("fisher"), "math", "science-ar").as_posix()
    'fisher/sources/math/science-ar.safetensors'
    """
    return root / "sources" / source / f"{ability}.safetensors"


def target_path(root: Path, data: str) -> Path:
    """Where the information of the target on samples stands, given their fingerprint."""
    return root / "target" / f"{data[:16]}.safetensors"
