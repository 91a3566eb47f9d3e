"""Where rows come from: local files, a saved folder, the hub, or the laboratory."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from act_lightning.data.reading.files import READERS, FileRows, ending
from act_lightning.data.reading.hub import is_saved_folder, load_from_folder, load_from_hub
from act_lightning.data.reading.row_source import LocatedRow, Row, RowSource
from act_lightning.data.settings import AbilityData
from act_lightning.errors import Fault

__all__ = ["Kind", "LocatedRow", "Row", "kind_of", "load_from_hub", "open_rows", "source_faults"]

Kind = Literal["lab", "file", "folder", "hub", "unknown"]

LABORATORY = "lab:"
_MEANINGFUL: dict[Kind, tuple[str, ...]] = {
    "file": (),
    "folder": ("split",),
    "lab": ("split",),
    "hub": ("name", "split", "revision", "streaming"),
}
_HUB_ID = re.compile(r"(?![.-])[\w.-]+(/[\w.-]+)?")


def kind_of(path: str) -> Kind:
    """What ``path`` names.

    >>> kind_of("data/science-ar.jsonl"), kind_of("meta-math/MetaMathQA"), kind_of("lab:words-de")
    ('file', 'hub', 'lab')
    >>> kind_of("data/science/ar.txt")
    'unknown'
    """
    if path.startswith(LABORATORY):
        return "lab"
    if ending(path) in READERS:
        return "file"
    if is_saved_folder(path):
        return "folder"
    return "hub" if _HUB_ID.fullmatch(path) and not Path(path).exists() else "unknown"


def source_faults(settings: AbilityData, where: str) -> list[Fault]:
    """What is wrong with ``path`` and the settings that belong to it, as far as no data need be read.

    Args:
        settings: The settings of one data set.
        where: Its place in the config, such as ``data.abilities.math-en``.
    """
    kind = kind_of(settings.path)
    if kind == "unknown":
        endings = ", ".join(f".{name}" for name in READERS)
        remedy = f"Name a file that ends in {endings}, a folder of save_to_disk, a hub id (owner/name), or lab:<name>."
        return [Fault(f"{where}.path", settings.path, "must name a data set of a known kind", remedy)]
    faults = []
    if kind == "file" and not _files(settings.path):
        faults.append(Fault(f"{where}.path", settings.path, "must be an existing file", "Check the path."))
    for setting in _MEANINGFUL["hub"]:
        if setting not in _MEANINGFUL[kind] and (value := getattr(settings, setting)):
            rule = f"has no meaning for {settings.path}"
            faults.append(Fault(f"{where}.{setting}", value, rule, "Leave it out; it belongs to hub data sets."))
    return faults


def open_rows(settings: AbilityData, where: str) -> RowSource:
    """All rows of a data set in its order.

    Args:
        settings: The settings of one data set, without faults.
        where: Its place in the config, for messages.

    Raises:
        ActError: If the data set is not to be had, or, while iterating, at the first row that cannot be read.
    """
    match kind_of(settings.path):
        case "file":
            return FileRows(_files(settings.path), where)
        case "folder":
            return load_from_folder(settings, where)
        case "lab":
            return LaboratoryRows(settings.path, settings.split or "train")
        case _:
            return load_from_hub(settings, where)


def _files(path: str) -> list[str]:
    """The file of this name, or else those that the pattern matches."""
    named = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
    return [file for file in named if Path(file).is_file()]


class LaboratoryRows(RowSource):
    """Rows that the built-in laboratory makes.

    Args:
        path: ``lab:<name>``.
        split: One of the laboratory's splits.
    """

    def __init__(self, path: str, split: str) -> None:
        from act_lightning.laboratory import rows  # here, because few runs need it

        self.path = path
        self.rows = rows(path.removeprefix(LABORATORY), split)

    def __iter__(self) -> Iterator[LocatedRow]:
        """All rows; places read ``lab:name row number``."""
        return ((f"{self.path} row {number}", row) for number, row in enumerate(self.rows, start=1))

    def fingerprint(self) -> str:
        """SHA-256 over the rows."""
        return hashlib.sha256(json.dumps(self.rows, sort_keys=True).encode()).hexdigest()
