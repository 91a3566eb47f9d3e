"""Where things lie that can be made again: nothing is lost with them but time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """``$ACT_LIGHTNING_CACHE/<name>``, or ``~/.cache/act_lightning/<name>``; it need not exist."""
    chosen = os.environ.get("ACT_LIGHTNING_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "act_lightning") / name
