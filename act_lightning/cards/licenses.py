"""What the cards of the base models say of their licenses. Nothing is inferred: what is not stated is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

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
