"""Memory: what this machine has, and what a pair of models takes."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from act_lightning.architecture import decoder_parts, part_sizes
from act_lightning.channels import ChannelInventory

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


@dataclass(frozen=True)
class PairNeeds:
    """Bytes of weights that a pair of models of one shape holds.

    Attributes:
        whole: All weights of all models.
        stage: Those of the largest stage: what is on the device when parts are brought there.
        next_stage: Those of the largest layer, which is read while the stage before it computes.
    """

    whole: int
    stage: int
    next_stage: int


def pair_needs(model: PreTrainedModel, itemsize: int, models: int) -> PairNeeds:
    """What ``models`` models like this one need.

    The stages are the embedding, every layer, and everything else together: what comes after the layers, and the little
    that may come before.

    Args:
        model: On the meta device is enough.
        itemsize: Bytes of a parameter.
        models: The target and its sources.
    """
    each = itemsize * models
    division, sizes = decoder_parts(model), part_sizes(model)
    embedding = _name(model, model.get_input_embeddings())
    layer = max(sizes[name] for name in division.layers)
    rest = sum(sizes[name] for name in division.outer if name != embedding)
    whole = sum(parameter.numel() for parameter in model.parameters())
    return PairNeeds(whole * each, max(layer, sizes.get(embedding, 0), rest) * each, layer * each)


def widest_stage(model: PreTrainedModel, channels: ChannelInventory) -> int:
    """The most channels that a layer has, or what is outside of layers."""
    division = decoder_parts(model)
    parts: Counter[str] = Counter()
    for module in channels.modules:
        parts[next((name for name in division.layers if module.name.startswith(f"{name}.")), "")] += module.count
    return max(parts.values())


def computing_width(config: PretrainedConfig) -> int:
    """Features of a token that a model computes with at once: its logits, or what is between two hidden states.

    >>> from transformers import LlamaConfig
    >>> computing_width(LlamaConfig(hidden_size=64, intermediate_size=176, vocab_size=32000))
    32000
    """
    text = config.get_text_config()
    hidden, inner = int(text.hidden_size), getattr(text, "intermediate_size", None)
    return max(int(text.vocab_size), 5 * int(inner or 4 * hidden) + 8 * hidden)


def _name(model: nn.Module, wanted: nn.Module) -> str:
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[wanted]
