"""What a card keeps for a replay: names, licenses, hashes of inputs and results, versions."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import act_lightning
from act_lightning.checkpoints.bin_conversion import BIN_PREFIX
from act_lightning.checkpoints.models import locate
from act_lightning.checkpoints.weight_files import identify
from act_lightning.errors import ActError

CARD = "README.md"
License = Mapping[str, Any]
"""``license`` and, if given, ``license_name`` and ``license_link``, as in front matter; empty if not stated."""
_LICENSE_KEYS = ("license", "license_name", "license_link")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
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
    """
    prefix = BIN_PREFIX if name.startswith(BIN_PREFIX) else ""
    path = name.removeprefix(prefix)
    return name if is_hub_id(path) else prefix + re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def read_license(folder: Path) -> License:
    """The license that the card in ``folder`` states, if any."""
    if not (folder / CARD).is_file():
        return {}
    from huggingface_hub import metadata_load  # takes half a second

    try:
        metadata = metadata_load(folder / CARD) or {}
    except (OSError, ValueError, yaml.YAMLError):
        metadata = {}
    return {key: metadata[key] for key in _LICENSE_KEYS if metadata.get(key)} if metadata.get("license") else {}


def license_text(license_: License) -> str:
    """A license on one line.

    >>> license_text({"license": "other", "license_name": "qwen"}), license_text({})
    ('other (qwen)', 'not stated')
    """
    if not license_:
        return "not stated"
    details = ", ".join(str(license_[key]) for key in _LICENSE_KEYS[1:] if key in license_)
    return f"{license_['license']}" + (f" ({details})" if details else "")


def common_license(licenses: Sequence[License]) -> License:
    """The license of a result if all its base models state the same one, else none.

    >>> common_license([{"license": "mit"}, {"license": "mit"}])
    {'license': 'mit'}
    >>> common_license([{"license": "llama2"}, {"license": "apache-2.0"}])
    {}
    """
    same = licenses and all(license_ == licenses[0] for license_ in licenses)
    return dict(licenses[0]) if same else {}


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
            folder = locate(str(name), revision, setting)
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


def result_hashes(folder: Path, verify: bool) -> dict[str, Any]:
    """The digest of the weights in ``folder`` and, with ``verify``, the SHA-256 of every file.

    Raises:
        ActError: Weights are missing or truncated.
    """
    identity = identify(folder, verify)
    return {"digest": identity.digest, "sha256": dict(identity.sha256 or {})}
