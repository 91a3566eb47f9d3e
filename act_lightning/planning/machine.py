"""What this machine has: memory of the host and of its accelerator."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def host_memory() -> int:
    """Bytes of memory that programs can have now: free or given back on demand, within the container's limit."""
    available = _meminfo("MemAvailable") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for path in _LIMITS if (text := _read(path).strip()).isdigit()]
    return min([available, *limits])


def runs_on_host(trainer: Mapping[str, Any]) -> bool:
    """Whether a run on this machine takes the CPU: it is asked for, or nothing else is there."""
    accelerator = str(trainer.get("accelerator") or "auto")
    return accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())


def device_memory() -> int | None:
    """Bytes of the first CUDA device, or ``None`` without one."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def _meminfo(key: str) -> int:
    lines = [line for line in _read("/proc/meminfo").splitlines() if line.startswith(f"{key}:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
