"""Which rows and columns of a matrix hold its changes, so that a patch stores these and no more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from act_lightning.patches.stored import Words


@dataclass(frozen=True)
class ChangedRegion:
    """Whole rows and whole columns of a ``[height, width]`` matrix.

    Channels are rows of most matrices and columns of embeddings; a tied matrix can have both.

    Attributes:
        rows: Bool ``[height]``.
        columns: Bool ``[width]``.
    """

    rows: NDArray[np.bool_]
    columns: NDArray[np.bool_]

    def size(self) -> int:
        """The number of elements covered; where a row and a column cross, once."""
        rows, columns = int(self.rows.sum()), int(self.columns.sum())
        return rows * len(self.columns) + columns * (len(self.rows) - rows)

    def take(self, matrix: Words) -> Words:
        """The covered elements of ``matrix``, ``[size]``: the rows first, then the rest of the columns."""
        rest = matrix[np.ix_(~self.rows, self.columns)]
        return np.concatenate([matrix[self.rows].reshape(-1), rest.reshape(-1)])

    def xor_(self, matrix: Words, values: Words) -> None:
        """XOR ``values``, in the order of :meth:`take`, into the covered elements of ``matrix``, in place."""
        split = int(self.rows.sum()) * len(self.columns)
        matrix[self.rows] ^= values[:split].reshape(-1, len(self.columns))
        rest = np.ix_(~self.rows, self.columns)
        matrix[rest] ^= values[split:].reshape(matrix[rest].shape)

    def clear_(self, matrix: Words) -> None:
        """Set the covered elements of ``matrix`` to zero, in place."""
        matrix[self.rows] = 0
        matrix[:, self.columns] = 0

    def meets(self, other: ChangedRegion) -> int:
        """The number of elements that both cover."""
        both = ChangedRegion(self.rows | other.rows, self.columns | other.columns)
        return self.size() + other.size() - both.size()


def changed_region(changes: Words) -> ChangedRegion:
    """The smallest of three covers of the nonzero elements of ``changes``, ``[height, width]``.

    Rows alone; columns alone; or the rows of which more than half has changed, and the columns of all other changes.
    """
    changed = changes != 0
    per_row = changed.sum(axis=1)
    no_rows, no_columns = np.zeros(changes.shape[0], np.bool_), np.zeros(changes.shape[1], np.bool_)
    heavy = per_row * 2 > changes.shape[1]
    candidates = (
        ChangedRegion(per_row > 0, no_columns),
        ChangedRegion(no_rows, changed.any(axis=0)),
        ChangedRegion(heavy, changed[~heavy].any(axis=0)),
    )
    return min(candidates, key=ChangedRegion.size)
