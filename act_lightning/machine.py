"""What this machine has: memory of the host and of its accelerator."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

_CGROUPS = Path("/sys/fs/cgroup")
# The limit, what is used of it, and the field of memory.stat that tells what of that would be given back on demand.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
_LIMITS = {resource.RLIMIT_AS: "VmSize", resource.RLIMIT_DATA: "VmData"}


def host_memory() -> int:
    """Bytes of memory that this process can still have: free or given back on demand, within all limits set on it.

    These are the control groups that the process is in (a container's is one), and its ``ulimit`` on address space and
    data.
    """
    available = _field("/proc/meminfo", "MemAvailable") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(0, min([available, *_rooms_in_groups(), *_rooms_under_limits()]))


def runs_on_host(trainer: Mapping[str, Any]) -> bool:
    """Whether a run on this machine takes the CPU: it is asked for, or nothing else is there."""
    accelerator = str(trainer.get("accelerator") or "auto")
    return accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())


def device_memory() -> int | None:
    """Bytes of the first CUDA device, or ``None`` without one."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still have on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return host_memory()


def _rooms_in_groups() -> Iterator[int]:
    """What is left in every control group of this process that has a limit."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers not in _GROUP_FILES:
            continue
        inner = _CGROUPS / controllers / place.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(_CGROUPS / controllers):
                yield from _room_in(folder, *_GROUP_FILES[controllers])


def _room_in(folder: Path, limit: str, used: str, given_back: str) -> Iterator[int]:
    most = _read(folder / limit).strip()
    if most.isdigit():
        returned = dict(line.split() for line in _read(folder / "memory.stat").splitlines()).get(given_back, 0)
        yield int(most) - int(_read(folder / used).strip() or 0) + int(returned)


def _rooms_under_limits() -> Iterator[int]:
    for limit, used in _LIMITS.items():
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield most - _field("/proc/self/status", used)


def _field(file: str, key: str) -> int:
    """A value in bytes of a table that tells it in kB; 0 where it does not."""
    lines = [line for line in _read(file).splitlines() if line.startswith(f"{key}:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
