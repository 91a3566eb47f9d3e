"""Keys that a config file gives twice in one place: YAML would take the later one, and say nothing."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from act_lightning.errors import ConfigIssue

_MERGE = "tag:yaml.org,2002:merge"
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def repeated_keys(text: str, file: str) -> list[ConfigIssue]:
    r"""A issue for every key that stands twice in one mapping.

    Args:
        text: A config in YAML; text that is not is none of our business here, and has no issues.
        file: Its path, for messages.

    >>> print(*repeated_keys("data:\n  abilities:\n    math: {path: a.jsonl}\n    math: {path: b.jsonl}\n", "x.yaml"))
    x.yaml:4 = 'math': must not stand twice in one place, and line 3 has it. Rename or drop one of the two.
    """
    try:
        return list(_faults(yaml.compose(text, Loader=_LOADER), file, set()))
    except yaml.YAMLError:
        return []


def _faults(node: yaml.Node | None, file: str, seen: set[int]) -> Iterator[ConfigIssue]:
    if node is None or id(node) in seen:  # an alias leads to what was looked at already
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _faults(item, file, seen)
    elif isinstance(node, yaml.MappingNode):
        yield from _repeated([key for key, _ in node.value if isinstance(key, yaml.ScalarNode)], file)
        for _, value in node.value:
            yield from _faults(value, file, seen)


def _repeated(keys: list[yaml.ScalarNode], file: str) -> Iterator[ConfigIssue]:
    lines: dict[tuple[str, str], int] = {}
    for key in keys:
        line, known = key.start_mark.line + 1, (key.tag, key.value)
        if known in lines and key.tag != _MERGE:
            problem = f"must not stand twice in one place, and line {lines[known]} has it"
            yield ConfigIssue(f"{file}:{line}", key.value, problem, "Rename or drop one of the two.")
        lines.setdefault(known, line)
