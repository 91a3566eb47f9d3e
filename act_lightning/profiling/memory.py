"""Memory: what this machine has free, and what a pair of models takes."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from act_lightning.architecture import decoder_parts, input_embedding, part_sizes
from act_lightning.channels import ChannelInventory

_CGROUPS = Path("/sys/fs/cgroup")
# By controller: the file of the limit, that of the usage, and the field of memory.stat for what is freed on demand.
_CGROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
_ULIMITS = {resource.RLIMIT_AS: "VmSize", resource.RLIMIT_DATA: "VmData"}


def host_memory() -> int:
    """Bytes of memory that this process can still have: free or freed on demand, within all limits set on it.

    The limits are those of its control groups (a container is one), and its ``ulimit`` on address space and data.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = [_table_bytes("/proc/meminfo", "MemAvailable") or physical, *_free_in_cgroups()]
    for limit, used in _ULIMITS.items():
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            available.append(soft - _table_bytes("/proc/self/status", used))
    return max(0, min(available))


def _free_in_cgroups() -> Iterator[int]:
    """Bytes left in every control group of this process that has a limit."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in _CGROUP_FILES:
            continue
        limit, usage, reclaimable = _CGROUP_FILES[controllers]
        root = _CGROUPS / controllers
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            most = _read(folder / limit).strip()
            if folder.is_relative_to(root) and most.isdigit():
                stat = dict(entry.split() for entry in _read(folder / "memory.stat").splitlines())
                yield int(most) - int(_read(folder / usage).strip() or 0) + int(stat.get(reclaimable, 0))


def _table_bytes(file: str, key: str) -> int:
    """A value in bytes from a table in kB; 0 if it is not there."""
    lines = [line for line in _read(file).splitlines() if line.startswith(f"{key}:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def runs_on_host(trainer: Mapping[str, Any]) -> bool:
    """Whether a trainer with these arguments computes on the CPU of this machine."""
    accelerator = str(trainer.get("accelerator") or "auto")
    return accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())


def device_memory() -> int | None:
    """Bytes of the first CUDA device, or ``None`` without one."""
    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still have on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return host_memory()


@dataclass(frozen=True)
class PairNeeds:
    """Bytes of weights of a pair of models of one shape.

    Attributes:
        whole: All weights of all models.
        stage: Those of the largest stage, which is what the device holds when parts are loaded one at a time.
        next_stage: Those of the largest layer, which is read while the stage before it computes.
    """

    whole: int
    stage: int
    next_stage: int


def pair_needs(model: PreTrainedModel, itemsize: int, models: int) -> PairNeeds:
    """What ``models`` models like this one need.

    The stages are the embedding, every layer, and all other parts together: most of these come after the layers.

    Args:
        model: On the meta device is enough.
        itemsize: Bytes of a parameter.
        models: The target and its sources.
    """
    parts, sizes = decoder_parts(model), part_sizes(model)
    embedding = sum(sizes[name] for name in parts.outer if model.get_submodule(name) is input_embedding(model))
    rest = sum(sizes[name] for name in parts.outer) - embedding
    layer = max(sizes[name] for name in parts.layers)
    whole = sum(parameter.numel() for parameter in model.parameters())
    each = itemsize * models
    return PairNeeds(whole * each, max(layer, embedding, rest) * each, layer * each)


def widest_stage(model: PreTrainedModel, channels: ChannelInventory) -> int:
    """The largest number of channels in a layer, or outside the layers."""
    layers = decoder_parts(model).layers
    counts: Counter[str] = Counter()
    for module in channels.modules:
        counts[next((name for name in layers if module.name.startswith(f"{name}.")), "")] += module.count
    return max(counts.values())
