"""What a card keeps for a replay: names, licenses, hashes, versions, and the recipe without a machine's own paths."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

import act_lightning
from act_lightning.checkpoints.adapters import split_adapter
from act_lightning.checkpoints.bin_conversion import BIN_PREFIX
from act_lightning.checkpoints.models import locate
from act_lightning.checkpoints.weight_files import ADAPTER, identify
from act_lightning.errors import ActError

CARD = "README.md"
License = Mapping[str, Any]
"""``license`` and, if given, ``license_name`` and ``license_link``, as in front matter; empty if not stated."""
LICENSE_KEYS = ("license", "license_name", "license_link")
_LICENSE_LINK = re.compile(r"https?://\S+|[\w./-]+")  # a page, or a file of the model
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Settings that hold a path even if the file is gone; in others, text that begins with a slash may not be a path.
_PATH_SETTINGS = frozenset(
    {"target", "model", "path", "scores", "template", "default_root_dir", "dirpath", "save_dir", "ckpt_path"}
)
_PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "safetensors", "datasets", "numpy")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name``.

    >>> is_hub_id("Qwen/Qwen2.5-7B"), is_hub_id("runs/deep/base"), is_hub_id("lab:generalist")
    (True, False, False)
    """
    return _HUB_ID.fullmatch(name) is not None


def short_name(name: str) -> str:
    """A hub id as it is; of a path only the last part, so that cards don't show the paths of a machine.

    >>> short_name("Qwen/Qwen2.5-7B"), short_name("/home/me/models/mine/"), short_name("bin:/home/me/old")
    ('Qwen/Qwen2.5-7B', 'mine', 'bin:old')
    >>> short_name("Qwen/Qwen2.5-7B+/home/me/adapter")
    'Qwen/Qwen2.5-7B+adapter'
    """
    if parts := split_adapter(name):
        return "+".join(map(short_name, parts))
    prefix = BIN_PREFIX if name.startswith(BIN_PREFIX) else ""
    path = name.removeprefix(prefix)
    return name if is_hub_id(path) else prefix + re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def read_license(folder: Path) -> License:
    """The license that the card in ``folder`` states, if any; with an adapter, the one that both cards state."""
    if (folder / ADAPTER).is_dir():
        return common_license([_read_license(folder / CARD), _read_license(folder / ADAPTER / CARD)])
    return _read_license(folder / CARD)


def _read_license(card: Path) -> License:
    if not card.is_file():
        return {}
    from huggingface_hub import metadata_load  # takes half a second

    try:
        metadata = metadata_load(card) or {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        metadata = {}
    return stated_license(metadata)


def stated_license(metadata: object) -> License:
    """The license in the metadata of a card or in a record, which may be anyone's; empty if it is no text.

    >>> stated_license({"license": "mit", "tags": []}), stated_license({"license": ["mit"]}), stated_license(None)
    ({'license': 'mit'}, {}, {})
    >>> stated_license({"license": "other", "license_link": "javascript:alert(1)"})
    {'license': 'other'}
    """
    values = {key: metadata.get(key) for key in LICENSE_KEYS} if isinstance(metadata, dict) else {}
    texts = {key: value for key, value in values.items() if value and isinstance(value, str)}
    if not _LICENSE_LINK.fullmatch(texts.get("license_link", "")):
        texts.pop("license_link", None)
    return texts if "license" in texts else {}


def license_text(license_: License) -> str:
    """A license on one line.

    >>> license_text({"license": "other", "license_name": "qwen"}), license_text({})
    ('other (qwen)', 'not stated')
    """
    license_ = stated_license(license_)
    if not license_:
        return "not stated"
    details = ", ".join(str(license_[key]) for key in LICENSE_KEYS[1:] if key in license_)
    return f"{license_['license']}" + (f" ({details})" if details else "")


def common_license(licenses: Sequence[License]) -> License:
    """The license of a result if all its base models state the same one, else none.

    >>> common_license([{"license": "mit"}, {"license": "mit"}])
    {'license': 'mit'}
    >>> common_license([{"license": "llama2"}, {"license": "apache-2.0"}])
    {}
    """
    stated = [stated_license(license_) for license_ in licenses]
    return stated[0] if stated and all(license_ == stated[0] for license_ in stated) else {}


def versions() -> dict[str, str]:
    """The versions on which the last bits of a result depend."""
    result = {"act-lightning": act_lightning.__version__, "python": platform.python_version()}
    result["machine"] = platform.machine()
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            result[package] = version(package)
    return result


def model_identities(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name, digest, hub commit and stated license of target and sources, by setting.

    A model that cannot be found has no digest.
    """
    model, profile = recipe.get("model") or {}, recipe.get("profile") or {}
    models = {"model.target": (model.get("target"), model.get("revision"))}
    for number, source in enumerate(profile.get("sources") or []):
        models[f"profile.sources.{number}.model"] = source.get("model"), source.get("revision")
    result: dict[str, dict[str, Any]] = {}
    for setting, (name, revision) in models.items():
        if not name:
            continue
        result[setting] = {"name": short_name(str(name)), "digest": None, "commit": None, "license": {}}
        with suppress(ActError):
            folder = locate(str(name), revision, setting, adapters=setting != "model.target")
            result[setting]["license"] = read_license(folder)
            identity = identify(folder)
            result[setting] |= {"digest": identity.digest, "commit": identity.commit}
    return result


def data_fingerprints(recipe: Mapping[str, Any]) -> dict[str, str | None]:
    """The fingerprint of every ability of a recipe by setting; ``None`` if its rows cannot be read."""
    abilities = (recipe.get("data") or {}).get("abilities") or {}
    if not abilities:
        return {}
    from act_lightning.data.ability_data import AbilityData, PerGroup
    from act_lightning.data.conversations import rows_fingerprint  # takes seconds to import, and a merge has no data

    result: dict[str, str | None] = {}
    for name, settings in abilities.items():
        setting = f"data.abilities.{name}"
        result[setting] = None
        with suppress(ActError, OSError, TypeError):
            per_group = settings.get("per_group")
            values = {**settings, "per_group": PerGroup(**per_group)} if per_group else settings
            result[setting] = rows_fingerprint(AbilityData(**values), setting)
    return result


def portable_recipe(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Shorten every absolute path of a run's config to its last part; hub ids and relative paths stay.

    Returns:
        The recipe, and the settings that were shortened, such as ``profile.sources.0.model``.

    >>> portable_recipe({"model": {"target": "/home/me/base", "dtype": "auto"}})
    ({'model': {'target': 'base', 'dtype': 'auto'}}, ['model.target'])
    """
    portable = deepcopy(dict(recipe))
    shortened = []
    for parent, key, setting in _leaves(portable):
        value = parent[key]
        if not isinstance(value, str) or "\n" in value:
            continue
        is_model = setting.rpartition(".")[2] == "model"  # of a source, which may be an adapter on its base
        paths = [part.removeprefix(BIN_PREFIX) for part in (is_model and split_adapter(value)) or [value]]
        paths = [path for path in paths if path.startswith(("/", "~")) or PureWindowsPath(path).is_absolute()]
        if not paths:
            continue
        is_path = setting.rpartition(".")[2] in _PATH_SETTINGS and "{" not in value
        with suppress(ValueError):  # a null byte
            is_path = is_path or any(os.path.lexists(os.path.expanduser(path)) for path in paths)
        if is_path:
            shortened.append(setting)
            parent[key] = short_name(value)
    return portable, shortened


def _leaves(parent: Any, prefix: str = "") -> Iterator[tuple[Any, Any, str]]:  # noqa: ANN401 - a mapping or list
    """Every value of a config that is no mapping or list, as its parent, its key there, and its dotted name."""
    for key, child in list(parent.items() if isinstance(parent, dict) else enumerate(parent)):
        if isinstance(child, (dict, list)):
            yield from _leaves(child, f"{prefix}{key}.")
        else:
            yield parent, key, f"{prefix}{key}"
