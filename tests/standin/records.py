"""Where a GPU would make its host wait, and where the host computes what the device should."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

PACKAGE = "act_lightning"
_HERE = str(Path(__file__).parent)
SYNCHRONIZING = {
    "_local_scalar_dense",  # item(), float(), int() and bool()
    "nonzero",
    "masked_select",
    "equal",
    "unique_dim",
    "_unique2",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
    "index copied to device",
    "copy to device",
    "copy to host",
    "synchronize",
}
"""Operations that the host waits for, and with them for all that was queued before."""


class Place(NamedTuple):
    """What happened, and where: the nearest line of our package, and the line of another one that it calls, if any."""

    what: str
    line: str
    library_line: str


_recordings = list[Counter[Place]]()


@contextmanager
def record_waits() -> Iterator[Counter[Place]]:
    """Count what a GPU's host would wait for inside the block."""
    _recordings.append(Counter())
    try:
        yield _recordings[-1]
    finally:
        _recordings.pop()


def record(operation: str) -> None:
    """Count an operation of the device, if the host waits for its result."""
    if _recordings and operation in SYNCHRONIZING:
        place = Place(operation, *_calling_lines())
        for recording in _recordings:
            recording[place] += 1


@contextmanager
def record_host_linears() -> Iterator[Counter[Place]]:
    """Count the calls of ``nn.Linear`` on the CPU inside the block: matrices that the device should multiply."""
    found = Counter[Place]()

    def look(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Linear) and args[0].device.type == "cpu":
            found[Place("linear", *_calling_lines())] += 1

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def _calling_lines() -> tuple[str, str]:
    frame, library_line = sys._getframe(2), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if f"/{PACKAGE}/" in file:
            return f"{file.rpartition(f'/{PACKAGE}/')[2]}:{frame.f_lineno}", library_line
        if not library_line and not file.startswith(_HERE) and "/torch/" not in file:
            library_line = f"{'/'.join(file.split('/')[-3:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere", library_line
