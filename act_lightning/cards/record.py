"""What a card keeps for a machine: the hashes of what went into a run and of what came out, and the versions used."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import act_lightning
from act_lightning.cards.licenses import read_license
from act_lightning.cards.names import short
from act_lightning.checkpoints import identify, locate
from act_lightning.errors import ActError

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
    from act_lightning.data import AbilityData, rows_fingerprint  # seconds to import, and nothing to read for a merge
    from act_lightning.data.settings import PerGroup

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
    found: dict[str, Any] = {"name": short(name), "digest": None, "commit": None, "license": {}}
    with suppress(ActError):
        folder = locate(name, revision, setting)
        found["license"] = read_license(folder)
        identity = identify(folder)
        found |= {"digest": identity.digest, "commit": identity.commit}
    return found
