"""Configs and overrides read as plain data, without the classes they configure: only what is beyond doubt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from act_lightning.cli.yaml_checks import repeated_keys

Config = dict[str, Any]
Kinds = Mapping[str, Any]
"""The type of every key: ``str``, ``int``, ``bool``, ``float`` for any number, ``list`` for texts; and for a list of
dicts, the kinds of their keys."""
_CONFIG = ("--config", "-c")


def read_plainly(arguments: list[str], kinds: Kinds) -> Config | None:
    """The settings that ``--config FILE`` and ``--section.key VALUE`` give, the later ones winning.

    Args:
        arguments: Those after the verb.
        kinds: The kinds of the settings that may be given, by section.

    Returns:
        Settings by section; ``None`` where anything else is given, which the whole parser must judge.
    """
    config: Config = {}
    try:
        for option, value in _options(arguments):
            given = _read(value) if option in _CONFIG else _nested(option, value)
            for section, settings in given.items():
                config[section] = {**config.get(section, {}), **settings} if section in kinds else settings
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return None
    return config if all(_is_known(section, value, kinds) for section, value in config.items()) else None


def _options(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Option and value of ``--a.b V`` and ``--a.b=V``.

    Raises:
        ValueError: Something else stands there.
    """
    waiting = iter(arguments)
    for argument in waiting:
        option, equals, value = argument.partition("=")
        if not option.startswith("-"):
            raise ValueError(argument)
        found = value if equals else next(waiting, None)
        if found is None:
            raise ValueError(argument)
        yield option, found


def _read(file: str) -> Config:
    text = Path(file).expanduser().read_text(encoding="utf-8")
    if repeated_keys(text, file):
        raise ValueError(file)
    return dict(yaml.safe_load(text))


def _nested(option: str, value: str) -> Config:
    section, dot, key = option.removeprefix("--").partition(".")
    plain = yaml.safe_load(value)
    return {section: {key: plain}} if dot else {section: plain}


def _is_known(section: str, value: Any, kinds: Kinds) -> bool:  # noqa: ANN401 - whatever a file holds
    return _fits(value, kinds[section]) if section in kinds else section == "seed_everything" and type(value) is int


def _fits(settings: Any, kinds: Kinds) -> bool:  # noqa: ANN401 - whatever a file holds
    """Whether ``settings`` is a dict of known keys, each with a value of its kind or null."""
    if not isinstance(settings, dict) or not settings.keys() <= kinds.keys():
        return False
    return all(value is None or _is_kind(value, kinds[key]) for key, value in settings.items())


def _is_kind(value: Any, kind: Any) -> bool:  # noqa: ANN401 - whatever a file holds
    if isinstance(kind, Mapping):
        return isinstance(value, list) and all(_fits(item, kind) for item in value)
    if kind is list:
        return isinstance(value, list) and all(type(item) is str for item in value)
    return type(value) in ((int, float) if kind is float else (kind,))
