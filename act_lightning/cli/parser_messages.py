"""A parser's message in the words of a config: file and line, the setting, what is wrong with it, and the remedy."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from act_lightning.errors import ConfigIssue

_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping of names",
    "NoneType": "null",
}
_KEY = re.compile(r'Parser key "([^"]+)":')
_UNKNOWN = re.compile(r"does not accept option '([^']+)'|(?:Option|Key|key) '([^']+)' is not (?:accepted|expected)")
_UNKNOWN_OPTION = re.compile(r"[Uu]nrecognized arguments: --(?:no_)?([\w.+-]+)")
_YAML = re.compile(r"in \"<unicode string>\", line (\d+), column \d+:?")
_NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_EXPECTED = re.compile(r"Expected an? (?:<class '(?:[\w.]*\.)?(\w+)'>|(\w+))")
_GIVEN = re.compile(r"(?:Got value|Given value): (.*)")


def explain(message: str, files: Mapping[str, str], settings: Iterable[str]) -> str:
    r"""What is wrong with a config or an option, from the message of jsonargparse.

    Args:
        message: The message.
        files: The text of the config files that may be meant, by path; none for options.
        settings: Dotted names of all settings.

    >>> message = "Subcommand 'fit' does not accept option 'model.learning_rte'"
    >>> print(explain(message, {"a.yaml": "model:\n  learning_rte: 1"}, ["model.learning_rate", "model.target"]))
    a.yaml:2: model.learning_rte: is no setting. Did you mean model.learning_rate?
    """
    names = list(settings)
    if match := _UNKNOWN_OPTION.search(message):
        return f"--{match[1]}: is no setting. {_did_you_mean(match[1], names)}"
    match = _KEY.search(message)
    key, inside = (match[1], message[match.end() :]) if match else ("", message)
    inside = re.sub(r"^\s*- Expected a path but .*\n", "", inside, flags=re.MULTILINE).strip()
    if (lines := _YAML.findall(inside)) and files:
        problem = " ".join(_YAML.sub("", inside).removeprefix("Problems parsing config: ").split())
        return f"{next(iter(files))}:{lines[-1]}: must be valid YAML ({problem})"
    if found := _NO_CLASS.search(inside):
        hint = _did_you_mean(found[2], _public_names(found[1]), 0.6)
        return f"{_place(files, key)}: there is no {found[2]} in {found[1]}. {hint}"
    if unknown := _UNKNOWN.search(inside):
        name, of_class = unknown[1] or unknown[2], _CLASS.search(inside)
        full = ".".join(filter(None, (key, name)))
        if of_class:
            hint = _did_you_mean(name, _arguments(of_class[1]), 0.6)
            return f"{_place(files, full)}: is no argument of {of_class[1]}. {hint}"
        return f"{_place(files, full)}: is no setting. {_did_you_mean(full, names)}"
    expected = dict.fromkeys(_TYPES.get(one or other) for one, other in _EXPECTED.findall(inside))
    given = _GIVEN.findall(inside)
    if key and given and expected and None not in expected:
        return _type_message(_place(files, key), given[-1], [str(name) for name in expected])
    if key == "config":
        return f"--config: {inside}"
    place = _place(files, key) if key else next(iter(files), "")
    return f"{place}: {inside}" if place else inside


def _type_message(place: str, given: str, expected: list[str]) -> str:
    if given == "None":
        return f"{place}: is missing. Give it in a file of --config, or as an option."
    value = yaml.safe_load(given) if re.fullmatch(r"[\w.+-]+", given) else given
    return str(ConfigIssue(place, value, f"must be {' or '.join(expected)}", "Correct the value."))


def _place(files: Mapping[str, str], key: str) -> str:
    """The setting, after the last file that has it, and the line there."""
    lines = {path: _line_of(text, key.split(".")) for path, text in files.items()}
    having = [path for path, (_, depth) in lines.items() if depth == max(depth for _, depth in lines.values())]
    if not having or not lines[having[-1]][0]:
        return key
    return f"{having[-1]}:{lines[having[-1]][0]}: {key}"


def _line_of(text: str, keys: Sequence[str]) -> tuple[int, int]:
    """The line of the deepest of nested keys that a YAML text has, and how deep that is; zeros if it has none."""
    try:
        node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return 0, 0
    line = depth = 0
    for key in keys:
        if isinstance(node, yaml.MappingNode) and (inner := _entry(node, "init_args")) and not _entry(node, key):
            node = inner[1]
        found = _entry(node, key)
        if found is None:
            break
        line, node, depth = found[0].start_mark.line + 1, found[1], depth + 1
    return line, depth


def _entry(node: Any, key: str) -> tuple[Any, Any] | None:  # noqa: ANN401 - a node of any kind
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((name, value) for name, value in pairs if name.value == key), None)


def _did_you_mean(name: str, names: Sequence[str], cutoff: float = 0.8) -> str:
    """The nearest of some names, by all or the last part of it."""
    end = name.rpartition(".")[2]
    ends = {other.rpartition(".")[2]: other for other in reversed(names)}
    near = difflib.get_close_matches(name, names, 1, cutoff)
    near += [ends[other] for other in difflib.get_close_matches(end, ends, 1, cutoff)]
    near += [other for part, other in ends.items() if part.startswith(f"{end}_")]
    return f"Did you mean {near[0]}?" if near else "--help lists all settings."


def _public_names(module: str) -> list[str]:
    try:
        home = importlib.import_module(module)
        return [name for name in getattr(home, "__all__", dir(home)) if not name.startswith("_")]
    except ImportError:
        return []


def _arguments(class_path: str) -> list[str]:
    """The names of a class's arguments; none if it can't be looked at."""
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
        return [parameter for parameter in inspect.signature(cls).parameters if parameter != "self"]
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
