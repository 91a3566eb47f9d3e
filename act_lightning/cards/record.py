"""What a card keeps for a machine: names, licenses, hashes of inputs and results, versions."""

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

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name``.

    >>> is_hub_id("Qwen/Qwen2.5-7B"), is_hub_id("runs/deep/base"), is_hub_id("lab:generalist")
    (True, False, False)
    """
    return _HUB_ID.fullmatch(name) is not None


def short_name(name: str) -> str:
    """A hub id as it is; of a folder the last part, for paths of one's machine are nobody's business.

    >>> short_name("Qwen/Qwen2.5-7B"), short_name("/home/me/models/mine/"), short_name("bin:/home/me/old")
    ('Qwen/Qwen2.5-7B', 'mine', 'bin:old')
    """
    prefix = BIN_PREFIX if name.startswith(BIN_PREFIX) else ""
    rest = name.removeprefix(prefix)
    return name if is_hub_id(rest) else prefix + re.split(r"[/\\]", rest.rstrip("/\\"))[-1]


CARD = "README.md"
License = Mapping[str, Any]
"""``license``, and with it ``license_name`` and ``license_link``, as they stand in a card; empty if none is stated."""
_FIELDS = ("license", "license_name", "license_link")


def read_license(folder: Path) -> License:
    """The license that the card in ``folder`` states, if there is one."""
    if not (folder / CARD).is_file():
        return {}
    from huggingface_hub import metadata_load  # takes half a second

    try:
        metadata = metadata_load(folder / CARD) or {}
    except (OSError, ValueError, yaml.YAMLError):
        metadata = {}
    return {key: metadata[key] for key in _FIELDS if metadata.get(key)} if metadata.get("license") else {}


def license_text(license_: License) -> str:
    """A license on one line.

    >>> license_text({"license": "other", "license_name": "qwen"}), license_text({})
    ('other (qwen)', 'not stated')
    """
    if not license_:
        return "not stated"
    more = ", ".join(str(license_[key]) for key in _FIELDS[1:] if key in license_)
    return f"{license_['license']}" + (f" ({more})" if more else "")


def common_license(licenses: Sequence[License]) -> License:
    """The license that all base models state alike, for a card's front matter; else none.

    >>> common_license([{"license": "mit"}, {"license": "mit"}])
    {'license': 'mit'}
    >>> common_license([{"license": "llama2"}, {"license": "apache-2.0"}])
    {}
    """
    alike = licenses and all(one == licenses[0] for one in licenses)
    return dict(licenses[0]) if alike else {}


_PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "safetensors", "datasets", "numpy")


def run_record(verb: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a replay needs to know of a run.

    Args:
        verb: ``merge`` or ``fit``.
        recipe: The run's config, with the paths of this machine.

    Returns:
        ``verb``, ``versions``, ``models`` (see :func:`model_identities`) and ``data`` (see :func:`data_fingerprints`).
    """
    return {"verb": verb, "versions": versions(), "models": model_identities(recipe), "data": data_fingerprints(recipe)}


def versions() -> dict[str, str]:
    """The versions on which the last bits of a result depend."""
    found = {"act-lightning": act_lightning.__version__, "python": platform.python_version()}
    found["machine"] = platform.machine()
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def model_identities(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name, digest, hub commit and stated license of target and sources, by setting.

    A model that is not to be had has no digest.
    """
    model, profile = recipe.get("model") or {}, recipe.get("profile") or {}
    named = {"model.target": (model.get("target"), model.get("revision"))}
    for number, source in enumerate(profile.get("sources") or []):
        named[f"profile.sources.{number}.model"] = source.get("model"), source.get("revision")
    return {setting: _identity(str(name), revision, setting) for setting, (name, revision) in named.items() if name}


def data_fingerprints(recipe: Mapping[str, Any]) -> dict[str, str | None]:
    """The fingerprint of every ability of a recipe by setting; ``None`` where its rows are not to be had."""
    if not (recipe.get("data") or {}).get("abilities"):
        return {}
    from act_lightning.data.ability_data import AbilityData, PerGroup
    from act_lightning.data.conversations import rows_fingerprint  # seconds to import, and nothing to read for a merge

    found: dict[str, str | None] = {}
    for name, settings in ((recipe.get("data") or {}).get("abilities") or {}).items():
        where = f"data.abilities.{name}"
        found[where] = None
        with suppress(ActError, OSError, TypeError):
            groups = settings.get("per_group")
            given = {**settings, "per_group": PerGroup(**groups)} if groups else settings
            found[where] = rows_fingerprint(AbilityData(**given), where)
    return found


def result_hashes(folder: Path, verify: bool) -> dict[str, Any]:
    """The digest of the weights in ``folder`` and, if all bytes are to be read, the SHA-256 of every file.

    Raises:
        ActError: Weights are missing or truncated.
    """
    identity = identify(folder, verify)
    return {"digest": identity.digest, "sha256": dict(identity.sha256 or {})}


def _identity(name: str, revision: str | None, setting: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": short_name(name), "digest": None, "commit": None, "license": {}}
    with suppress(ActError):
        folder = locate(name, revision, setting)
        found["license"] = read_license(folder)
        identity = identify(folder)
        found |= {"digest": identity.digest, "commit": identity.commit}
    return found
