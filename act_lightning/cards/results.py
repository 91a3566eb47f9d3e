"""What a run's saved evaluations say, as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from act_lightning.cards.names import short

_SHARES = ("exact_match", "flexible_match", "answered")


def result_rows(folder: Path) -> list[list[str]]:
    """The figures in every JSON file of a run's ``evaluations/``, the head of the table first.

    Results of ``test`` are told with their intervals; comparisons as shares of exact matches; any other number under
    its dotted name. Rows name the model that was evaluated, which need not be the one with the card. A file that is no
    JSON is passed over, for others may put theirs there.

    Args:
        folder: The folder; it need not exist.
    """
    rows = [row for path in sorted(folder.glob("*.json")) for row in _file_rows(path)]
    return [["evaluation", "model", "what", "value"], *rows] if rows else []


def _file_rows(path: Path) -> Iterator[list[str]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    rows = content if isinstance(content, list) else []
    if rows and all(isinstance(row, dict) and {"correct", "total"} <= row.keys() for row in rows):
        yield from (line for row in rows for line in _comparison_rows(row))
    elif isinstance(content, dict) and {"model", "sets"} <= content.keys():
        yield from _test_rows(content)
    else:
        yield from ([path.stem, "", name, f"{value:g}"] for name, value in _numbers(content))


def _comparison_rows(row: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, correct in row["correct"].items():
        total = row["total"][name]
        share = f"{correct / total:.1%} ({correct} of {total})" if total else "no items"
        yield [name, str(row.get("model", "")), "exact match", share]


def _test_rows(content: Mapping[str, Any]) -> Iterator[list[str]]:
    """Shares with the ends of their 95 % intervals, set by set; then the means of sets to keep and to recover."""
    model = short(str(content["model"]))
    for name, one in content["sets"].items():
        for share in (share for share in _SHARES if share in one.get("shares", {})):
            yield [name, model, share.replace("_", " "), f"{_interval(one['shares'][share])}, n = {one['total']}"]
    for role, mean in content.get("means", {}).items():
        yield [role, model, "mean exact match", _interval(mean)]


def _interval(share: Mapping[str, float]) -> str:
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name or "value", float(value)
