"""The pieces of Markdown that cards are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; the first row is its head.

    >>> table([["a", "b"], ["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def fenced(text: str, language: str) -> list[str]:
    """``text`` as a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, text.rstrip("\n"), fence]


def front_matter(values: Mapping[str, Any]) -> list[str]:
    """The YAML with which the hub wants a card to begin."""
    return ["---", yaml_text(values).rstrip("\n"), "---", ""]


def yaml_text(values: Mapping[str, Any]) -> str:
    """``values`` as YAML, in their order."""
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
