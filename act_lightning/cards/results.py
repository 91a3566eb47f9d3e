"""What a run's saved evaluations say, as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def result_rows(folder: Path) -> list[list[str]]:
    """The figures in every JSON file of a run's ``evaluations/``, the head of the table first.

    Rows of ``correct`` and ``total`` by set, as comparisons are saved, become shares of exact matches; any other
    number is told under its dotted name. A file that is no JSON is passed over, for others may put theirs there.

    Args:
        folder: The folder; it need not exist.
    """
    rows = [row for path in sorted(folder.glob("*.json")) for row in _file_rows(path)]
    return [["evaluation", "what", "value"], *rows] if rows else []


def _file_rows(path: Path) -> Iterator[list[str]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    if isinstance(content, list) and all(
        isinstance(one, dict) and {"correct", "total"} <= one.keys() for one in content
    ):
        for row in content:
            yield from _comparison_rows(row)
    else:
        yield from ([path.stem, name, f"{value:g}"] for name, value in _numbers(content))


def _comparison_rows(row: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, correct in row["correct"].items():
        total = row["total"][name]
        share = f"{correct / total:.1%} ({correct} of {total})" if total else "no items"
        yield [name, str(row.get("model", "")), share]


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name or "value", float(value)
