"""A parser's message in the words of a config: file and line, the setting, what is wrong with it, and the remedy."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import yaml

from act_lightning.errors import ConfigIssue
from act_lightning.escaping import terminal_text
from act_lightning.redaction import redact_text

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
_WORDS = re.compile(r"typing\.Literal\[([^\]]*)\]")
_REQUIRED = re.compile(r"the following arguments are required: ([\w., ]+)")
_NO_VALUE = re.compile(r"argument (?:-\w/)?(--[\w.+-]+): expected (?:one|at least one) argument")
_NO_OPTION = re.compile(r"[Uu]nrecognized arguments: (?!-)(\S+)")
_NO_SECTION = re.compile(r"Unable to load config '(.*)'")
_NO_REASON = "Expected a|Not a valid subclass|a class path|a dict|Does not validate"
_REASONS = re.compile(rf"^ *- (?!{_NO_REASON})(.*(?:\n(?! *- | *Given).*)*)", re.MULTILINE)


class VerbParser(argparse.ArgumentParser):
    """The parser of a verb that takes no config: without abbreviations, and with remedies in its messages."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and what may be meant, and exit with status 2."""
        choices = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        parsers = [self, *(each for verbs in choices for each in verbs.values())]
        words = [word for parser in parsers for action in parser._actions for word in action.option_strings]
        words += [word for verbs in choices for word in verbs]
        wrong = re.search(r"(?:unrecognized arguments:|invalid choice:) '?([\w-]+)", message)
        near = difflib.get_close_matches(wrong[1], words, 1, 0.6) if wrong else []
        print(f"tip: {self.prog} --help", file=sys.stderr)
        hint = f". Did you mean {near[0]}?" if near else ""
        print(terminal_text(redact_text(f"error: {message}{hint}")), file=sys.stderr)
        self.exit(2)


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
    if text := _explain_form(message, names):
        return text
    match = _KEY.search(message)
    key, inside = (match[1], message[match.end() :]) if match else ("", message)
    inside = re.sub(r"^\s*- Expected a path but .*\n", "", inside, flags=re.MULTILINE).strip()
    if (lines := _YAML.findall(inside)) and files:
        problem = " ".join(_YAML.sub("", inside).removeprefix("Problems parsing config: ").split())
        return f"{next(iter(files))}:{lines[-1]}: must be valid YAML ({problem})"
    if inside.startswith("Unexpected config:"):
        return f"{next(iter(files), '--config')}: must hold sections by name, such as model and data."
    if text := _explain_name(key, inside, files, names) or _explain_value(key, inside, files):
        return text
    if key == "config":
        return f"--config: {inside}"
    place = _place(files, key) if key else next(iter(files), "")
    if "Union subtypes" in inside:
        reasons = dict.fromkeys(" ".join(reason.split()) for reason in _REASONS.findall(inside))
        inside = "; ".join(_CLASS.sub(r"\1", reason) for reason in reasons) or "must be of another type, see --help."
    return f"{place}: {inside}" if place else inside


def _explain_form(message: str, names: Sequence[str]) -> str | None:
    """What is wrong with the form of a command line; ``None`` if it is something else."""
    if match := _UNKNOWN_OPTION.search(message):
        return f"--{match[1]}: is no setting. {_did_you_mean(match[1], names)}"
    if match := _NO_VALUE.search(message):
        return f"{match[1]}: needs a value."
    if match := _NO_OPTION.search(message):
        return f"{match[1]}: is no option. The name of an option begins with --, and its value follows it."
    return None


def _explain_name(key: str, inside: str, files: Mapping[str, str], names: Sequence[str]) -> str | None:
    """What is wrong with the name of a class, an argument or a setting, or which is missing; ``None`` if nothing is."""
    of_class = _CLASS.search(inside)
    if found := _NO_CLASS.search(inside):
        hint = _did_you_mean(found[2], _public_names(found[1]), 0.6)
        return f"{_place(files, key)}: there is no {found[2]} in {found[1]}. {hint}"
    if unknown := _UNKNOWN.search(inside):
        name = unknown[1] or unknown[2]
        full = ".".join(filter(None, (key, name)))
        if of_class:
            hint = _did_you_mean(name, _arguments(of_class[1]), 0.6)
            return f"{_place(files, full)}: is no argument of {of_class[1]}. {hint}"
        return f"{_place(files, full)}: is no setting. {_did_you_mean(full, names)}"
    if required := _REQUIRED.search(inside):
        hint = "Give it in a file of --config, or as an option."
        hint = f"Give it in init_args of {of_class[1]}." if of_class else hint
        missing = [".".join(filter(None, (key, name.strip()))) for name in required[1].split(",")]
        return f"{', '.join(_place(files, name) for name in missing)}: is missing. {hint}"
    return None


def _explain_value(key: str, inside: str, files: Mapping[str, str]) -> str | None:
    """What is wrong with the value of a setting; ``None`` if that is unknown."""
    given = _GIVEN.findall(inside)
    expected = dict.fromkeys(_TYPES.get(one or other) for one, other in _EXPECTED.findall(inside))
    if words := dict.fromkeys(word.strip(" '\"") for group in _WORDS.findall(inside) for word in group.split(",")):
        full = ".".join([key, *_KEY.findall(inside)])
        problem = " or ".join((f"must be one of {', '.join(words)}", *filter(None, expected)))
        near = difflib.get_close_matches(given[0], words, 1, 0.6) if given else []
        hint = f"Did you mean {near[0]}?" if near else "Write one of these."
        return str(ConfigIssue(_place(files, full), given[0] if given else ..., problem, hint))
    if unread := _NO_SECTION.search(inside):
        problem = "must hold settings by name"
        return str(ConfigIssue(_place(files, key), unread[1], problem, "Write each as name: value."))
    if key and given and expected and None not in expected and "Namespace(" not in given[-1]:
        return _type_message(_place(files, key), given[-1], [str(name) for name in expected])
    return None


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
        found = _entry(node, key) or (_below(node, key) if key == keys[-1] else None)
        if found is None:
            break
        line, node, depth = found[0].start_mark.line + 1, found[1], depth + 1
    return line, depth


def _entry(node: Any, key: str) -> tuple[Any, Any] | None:  # noqa: ANN401 - a node of any kind
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((name, value) for name, value in pairs if name.value == key), None)


def _below(node: Any, key: str) -> tuple[Any, Any] | None:  # noqa: ANN401 - a node of any kind
    """The first entry of a name at any depth: messages leave out the names of data sets and the numbers of items."""
    inner = [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else []
    inner += node.value if isinstance(node, yaml.SequenceNode) else []
    return next(filter(None, (_entry(each, key) or _below(each, key) for each in inner)), None)


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
