"""Recipes that can be shared: absolute paths removed, and replaced by those of another machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any

from act_lightning.cards.record import short_name
from act_lightning.checkpoints.bin_conversion import BIN_PREFIX
from act_lightning.errors import ConfigIssue, raise_if_any

# Settings that hold a path even if the file is gone; in others, text that begins with a slash may not be a path.
_PATH_SETTINGS = frozenset(
    {"target", "model", "path", "scores", "template", "default_root_dir", "dirpath", "save_dir", "ckpt_path"}
)


def portable_recipe(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Shorten every absolute path of a run's config to its last part; hub ids and relative paths stay.

    Returns:
        The recipe, and the settings that were shortened, such as ``profile.sources.0.model``.

    >>> portable_recipe({"model": {"target": "/home/me/base", "dtype": "auto"}})
    ({'model': {'target': 'base', 'dtype': 'auto'}}, ['model.target'])
    """
    shortened: list[str] = []

    def shorten(setting: str, value: Any) -> Any:  # noqa: ANN401 - any value of a config
        if not _is_absolute_path(setting, value):
            return value
        shortened.append(setting)
        return short_name(value)

    return _map_leaves(recipe, shorten), shortened


def localize_recipe(
    recipe: Mapping[str, Any],
    shortened: Iterable[str],
    folders: Sequence[Path],
    out: Path,
    paths: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Put paths of this machine into a portable recipe.

    Args:
        recipe: The recipe that :func:`portable_recipe` returned.
        shortened: The settings that it shortened.
        folders: Folders in which to look for models and data files by name; the first match is used.
        out: The folder for all output.
        paths: Paths by setting; these are not looked for.

    Raises:
        ActError: Naming every model and file that was not found.
    """
    issues: list[ConfigIssue] = []
    names = set(shortened)

    def localize(setting: str, value: Any) -> Any:  # noqa: ANN401 - any value of a config
        if setting == "trainer.default_root_dir":
            return str(out)
        if setting in paths or setting not in names:
            return paths.get(setting, value)
        if setting.startswith("trainer."):
            return str(out / value)
        for folder in folders:
            if (folder / value).exists() or ("*" in value and any(folder.glob(value))):  # data may be given by pattern
                return str(folder / value)
        hint = f"Name the folder that holds it with --from, or its own place with --{setting}."
        problem = f"must be found by this name in {', '.join(str(folder) for folder in folders)}"
        issues.append(ConfigIssue(setting, value, problem, hint))
        return value

    result: dict[str, Any] = _map_leaves(recipe, localize)
    raise_if_any(issues)
    # Sources keep their names wherever they lie: random draws and score files depend on the name.
    sources, localized = ((config.get("profile") or {}).get("sources") or [] for config in (recipe, result))
    for source, local in zip(sources, localized, strict=True):
        local.setdefault("name", re.split(r"[/:\\]", source["model"].rstrip("/\\"))[-1])
    return result


def _is_absolute_path(setting: str, value: object) -> bool:
    if not isinstance(value, str) or "\n" in value:
        return False
    path = value.removeprefix(BIN_PREFIX)
    if not path.startswith(("/", "~")) and not PureWindowsPath(path).is_absolute():
        return False
    if setting.rpartition(".")[2] in _PATH_SETTINGS and "{" not in path:
        return True
    with suppress(ValueError):  # a null byte
        return os.path.lexists(os.path.expanduser(path))
    return False


def _map_leaves(value: Any, function: Callable[[str, Any], Any], setting: str = "") -> Any:  # noqa: ANN401
    """``value`` with every leaf replaced by ``function(setting, leaf)``, where ``setting`` is its dotted name."""
    if isinstance(value, Mapping):
        return {
            key: _map_leaves(child, function, f"{setting}.{key}" if setting else str(key))
            for key, child in value.items()
        }
    if isinstance(value, list):
        return [_map_leaves(child, function, f"{setting}.{number}") for number, child in enumerate(value)]
    return function(setting, value)
