"""Several ``--config`` files as overlays: later files win, and dicts of data sets are merged by key.

Nothing here imports Lightning, so that verbs which need no Trainer start fast.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]  # computed __all__

from act_lightning.cli.parser_messages import explain
from act_lightning.errors import ConfigIssue, raise_if_any
from act_lightning.escaping import terminal_text
from act_lightning.redaction import REDACTED, redact, redact_text

_MERGED_BY_KEY = ("data.abilities", "data.evaluations")
_FOUND_LAST = ("does not accept option", "arguments are required")  # when all files have been parsed
_YAML_MERGE = "tag:yaml.org,2002:merge"
_YAML_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class ConfigParser(ArgumentParser):
    """A parser that takes several ``--config`` files and names the file in its error messages.

    Attributes:
        config_path: The config file that is being parsed; empty while options are.
        config_paths: The config files that have been parsed.
    """

    config_path = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.config_paths: list[str] = []

    def add_config_option(self) -> None:
        """Add ``--config``; not in ``__init__``, for jsonargparse makes parsers of this class for nested classes."""
        self.add_argument("-c", "--config", action=MergeConfigFiles, help="Path to a YAML file; may be repeated.")

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """The config as text, for cards, saved configs and ``--print_config``: without secrets."""
        return str(super().dump(redact(args[0]), *args[1:], **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, where, and what to do, and exit; or raise the parser's message where that is asked for."""
        parser = getattr(ex, "subcommand_parser", None) or self
        if not self.exit_on_error or not isinstance(parser, ConfigParser):
            super().error(
                terminal_text(redact_text(f"{self.config_path}: {message}" if self.config_path else message)), ex
            )
        paths = [self.config_path] if self.config_path else []
        if not paths and any(words in message for words in _FOUND_LAST):
            choices = [action.choices for action in self._actions if isinstance(action.choices, dict)]
            verbs = [verb for each in choices for verb in each.values() if isinstance(verb, ConfigParser)]
            parser = next((each for each in (parser, *verbs) if each.config_paths), parser)
            paths = self.config_paths or parser.config_paths
        known = [action.dest for action in parser._actions]
        text = explain(message, {path: _read(path) for path in paths}, known)
        print(f"tip: {parser.prog.replace(' [options]', '')} --help", file=sys.stderr)
        print(terminal_text(redact_text(f"error: {text}")), file=sys.stderr)
        self.exit(2)


class MergeConfigFiles(ActionConfigFile):
    """The action of ``--config``: apply one more file on top of those before it."""

    def __call__(  # type: ignore[override]
        self, parser: ArgumentParser, cfg: Namespace, values: str, option_string: str | None = None
    ) -> None:
        """Parse the file and merge its data sets with the earlier ones.

        Raises:
            ActError: If a mapping of the file has the same key twice.
        """
        path = str(values)
        raise_if_any(duplicate_key_issues(_read(path), path))
        earlier = {key: _to_dict(cfg.get(key)) for key in _MERGED_BY_KEY}
        if isinstance(parser, ConfigParser):
            parser.config_path = path
            parser.config_paths.append(path)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        if isinstance(parser, ConfigParser):
            parser.config_path = ""
        for key, before in earlier.items():
            later = _to_dict(cfg.get(key))
            if before and later is not None:
                cfg[key] = _merge(before, later)


def _read(path: str) -> str:
    """The text of a file; none if it can't be read, which the parser reports."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _to_dict(value: Any) -> Any:  # noqa: ANN401 - any value of a config
    """Turn namespaces into dicts, at every depth."""
    if isinstance(value, Namespace):
        value = vars(value)
    return {key: _to_dict(item) for key, item in value.items()} if isinstance(value, dict) else value


def _merge(before: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Merge two dicts at every depth; where only one value is a dict, the later value wins."""
    merged = {**before, **later}
    for key in before.keys() & later.keys():
        if isinstance(before[key], dict) and isinstance(later[key], dict):
            merged[key] = _merge(before[key], later[key])
    return merged


def duplicate_key_issues(text: str, path: str) -> list[ConfigIssue]:
    r"""Find keys that a mapping has twice, of which YAML would silently take the later one.

    Args:
        text: A config in YAML. Text that is not YAML has no issues here; the parser refuses it.
        path: Its path, for messages.

    >>> text = "data:\n  abilities:\n    math: {path: a.jsonl}\n    math: {path: b.jsonl}\n"
    >>> print(*duplicate_key_issues(text, "x.yaml"))
    x.yaml:4 = 'math': must not stand twice in one place, and line 3 has it. Rename or drop one of the two.
    """
    try:
        document = yaml.compose(text, Loader=_YAML_LOADER)
    except yaml.YAMLError:
        return []
    issues = []
    for mapping in _mappings(document, set()):
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in mapping.value if isinstance(key, yaml.ScalarNode)):
            line, identity = key.start_mark.line + 1, (key.tag, key.value)
            if identity in lines and key.tag != _YAML_MERGE:
                problem = f"must not stand twice in one place, and line {lines[identity]} has it"
                issues.append(ConfigIssue(f"{path}:{line}", key.value, problem, "Rename or drop one of the two."))
            lines.setdefault(identity, line)
    return issues


def _mappings(node: yaml.Node | None, visited: set[int]) -> Iterator[yaml.MappingNode]:
    """Walk all mappings below ``node``; an alias is visited once."""
    if node is None or id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for child in item if isinstance(item, tuple) else (item,):
                yield from _mappings(child, visited)


def redacted_issues(config: Namespace) -> list[ConfigIssue]:
    """Find settings from a card or saved config that held a secret."""
    problem, hint = "was left out of the config, because it is a secret", "Give it again, or in the environment."
    return [
        ConfigIssue(setting, REDACTED, problem, hint) for setting, value in config.items() if REDACTED in str(value)
    ]
