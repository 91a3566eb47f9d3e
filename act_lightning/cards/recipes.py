"""Recipes that travel: without the paths of the machine they were written on, and with those of another."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any

from act_lightning.cards.record import short_name
from act_lightning.checkpoints.bin_conversion import BIN_PREFIX
from act_lightning.errors import ConfigIssue, raise_if_any

# Settings that hold a path even where the file has gone since; other text may begin with a slash and be none.
_PATHS = frozenset(
    {"target", "model", "path", "scores", "template", "default_root_dir", "dirpath", "save_dir", "ckpt_path"}
)
_OUTPUTS = "trainer."
_Change = Callable[[str, Any], Any]


def portable_recipe(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe in which every absolute path is shortened to its last part; hub ids and relative paths stay.

    Args:
        recipe: A run's config.

    Returns:
        The recipe, and the settings that were shortened, such as ``profile.sources.0.model``.

    >>> portable_recipe({"model": {"target": "/home/me/base", "dtype": "auto"}})
    ({'model': {'target': 'base', 'dtype': 'auto'}}, ['model.target'])
    """
    shortened: list[str] = []

    def change(setting: str, value: Any) -> Any:  # noqa: ANN401 - any value of a config
        if not _is_private(setting, value):
            return value
        shortened.append(setting)
        return short_name(value)

    return _walk(recipe, change), shortened


def localize_recipe(
    recipe: Mapping[str, Any],
    shortened: Iterable[str],
    folders: Sequence[Path],
    out: Path,
    places: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """A portable recipe with paths of this machine.

    Args:
        recipe: What :func:`portable` gave.
        shortened: The settings that it shortened.
        folders: Where models and data files are looked for by name; the first that has one wins.
        out: What is written goes here.
        places: Paths by setting, which need not be looked for.

    Raises:
        ActError: With every model and file that was not found.
    """
    issues: list[ConfigIssue] = []
    names = set(shortened)

    def change(setting: str, value: Any) -> Any:  # noqa: ANN401
        if setting == "trainer.default_root_dir":
            return str(out)
        if setting in places or setting not in names:
            return places.get(setting, value)
        if setting.startswith(_OUTPUTS):
            return str(out / value)
        found = next((folder / value for folder in folders if _holds(folder, value)), None)
        if found is None:
            where = ", ".join(str(folder) for folder in folders)
            hint = f"Name the folder that holds it with --from, or its own place with --{setting}."
            issues.append(ConfigIssue(setting, value, f"must be found by this name in {where}", hint))
        return value if found is None else str(found)

    result: dict[str, Any] = _walk(recipe, change)
    raise_if_any(issues)
    _keep_names(recipe, result)
    return result


def _keep_names(recipe: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Name sources as they were named, wherever they lie now: random draws and score files go by the name."""
    before, after = ((one.get("profile") or {}).get("sources") or [] for one in (recipe, result))
    for old, new in zip(before, after, strict=True):
        new.setdefault("name", re.split(r"[/:\\]", old["model"].rstrip("/\\"))[-1])


def _holds(folder: Path, name: str) -> bool:
    """Whether ``folder`` holds a file or folder of this name, or of this pattern, as data sets may be given."""
    return (folder / name).exists() or ("*" in name and any(folder.glob(name)))


def _is_private(setting: str, value: object) -> bool:
    if not isinstance(value, str) or "\n" in value:
        return False
    value = value.removeprefix(BIN_PREFIX)
    absolute = value.startswith(("/", "~")) or PureWindowsPath(value).is_absolute()
    return absolute and ((setting.rpartition(".")[2] in _PATHS and "{" not in value) or _exists(value))


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(os.path.expanduser(path))
    except ValueError:  # a null byte
        return False


def _walk(value: Any, change: _Change, setting: str = "") -> Any:  # noqa: ANN401
    """``value`` with every leaf replaced by what ``change`` makes of it, given its dotted place."""
    if isinstance(value, Mapping):
        return {key: _walk(one, change, f"{setting}.{key}" if setting else str(key)) for key, one in value.items()}
    if isinstance(value, list):
        return [_walk(one, change, f"{setting}.{number}") for number, one in enumerate(value)]
    return change(setting, value)
