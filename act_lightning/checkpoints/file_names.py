"""Names that become parts of paths: of sources, abilities and evaluation sets."""

from __future__ import annotations

import re

from act_lightning.errors import Fault

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def name_faults(name: str, setting: str) -> list[Fault]:
    """The fault of a name that cannot become part of a path.

    Args:
        name: What was given.
        setting: Where it was given.
    """
    if _NAME.fullmatch(name) and name not in (".", ".."):
        return []
    rule = "must be a name that matches [A-Za-z0-9._-]+ and is not . or .."
    return [Fault(setting, name, rule, "Rename it: files are named after it.")]
