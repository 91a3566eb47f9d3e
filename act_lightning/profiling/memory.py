"""How a pair of models is held, how much of it at once, and the memory that this machine has for it."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from act_lightning.architecture import decoder_parts, input_embedding, part_sizes
from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.models import QUANTIZATIONS
from act_lightning.errors import ConfigIssue
from act_lightning.scorers.scorer import ActivationScorer, Scorer, WeightScorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from act_lightning.profiling.measurement import Target

_CGROUPS = Path("/sys/fs/cgroup")
# By controller: the file of the limit, that of the usage, and the field of memory.stat for what is freed on demand.
_CGROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
_ULIMITS = {resource.RLIMIT_AS: "VmSize", resource.RLIMIT_DATA: "VmData"}
PLACEMENTS = ("auto", "resident", "offload", "layerwise")


@dataclass(frozen=True)
class PairSettings:
    """How a pair is held.

    Attributes:
        placement: ``resident``, ``offload``, ``layerwise``, or ``auto``: resident if the device has the memory.
        quantization: ``8bit``, ``4bit`` or ``None``.
        tokens_per_batch: Bound on the tokens of a batch.
    """

    placement: str = "auto"
    quantization: str | None = None
    tokens_per_batch: int = 8192

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the settings, without looking at files."""
        issues = []
        if self.placement not in PLACEMENTS:
            problem = f"must be one of {', '.join(PLACEMENTS)}"
            issues.append(ConfigIssue("profile.placement", self.placement, problem, "Try auto."))
        if self.quantization is None:
            return issues
        if self.quantization not in QUANTIZATIONS:
            problem = f"must be null or one of {', '.join(QUANTIZATIONS)}"
            issues.append(self._quantization_issue(problem, "Leave it out for full precision."))
        elif self.placement not in ("auto", "resident"):
            reason = "quantized models are compared whole on the device"
            problem = f"must be null under placement {self.placement}: {reason}"
            issues.append(self._quantization_issue(problem, "Choose one of the two."))
        return issues

    def run_issues(self, device: torch.device, target: Target, scorer: Scorer) -> list[ConfigIssue]:
        """What keeps this run from holding the pair as set."""
        issues = []
        needs_gradients = not isinstance(scorer, (ActivationScorer, WeightScorer))
        if needs_gradients and self.placement == "offload":
            problem = f"must be resident or layerwise for {scorer.name}, which takes gradients"
            issues.append(ConfigIssue("profile.placement", self.placement, problem, "Leave it out."))
        if needs_gradients and self.placement == "layerwise" and target.model is not None:
            problem = f"must be resident for {scorer.name} of a target that is in memory"
            hint = "Leave it out, or build the model in configure_model, and name its folder (target=...)."
            issues.append(ConfigIssue("profile.placement", self.placement, problem, hint))
        if self.quantization is None or isinstance(scorer, WeightScorer):
            return issues
        if device.type != "cuda":
            problem = f"needs a GPU, and this run computes on {device.type}"
            issues.append(self._quantization_issue(problem, "Leave it out, or run where there is a CUDA device."))
        if find_spec("accelerate") is None:
            problem = "needs the package accelerate, with which transformers loads quantized models"
            issues.append(self._quantization_issue(problem, "Run: pip install accelerate"))
        if target.model is not None:
            problem = "needs a target that is loaded from its folder, and this one is in memory"
            hint = "Build the model in configure_model, and name its folder (target=...)."
            issues.append(self._quantization_issue(problem, hint))
        if needs_gradients or (isinstance(scorer, ActivationScorer) and scorer.needs_source_weights):
            problem = f"is not possible for {scorer.name}, which puts the source's weights into the target"
            issues.append(self._quantization_issue(problem, "Leave it out, or select by activation."))
        return issues

    def _quantization_issue(self, problem: str, hint: str) -> ConfigIssue:
        return ConfigIssue("profile.quantization", self.quantization, problem, hint)


def host_memory() -> int:
    """Bytes of memory that this process can still have: free or freed on demand, within all limits set on it.

    The limits are those of its control groups (a container is one), and its ``ulimit`` on address space and data.
    """
    table = [line.split() for line in (_read("/proc/meminfo") + _read("/proc/self/status")).splitlines()]
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in table if words[-1:] == ["kB"]}
    available = [sizes.get("MemAvailable", 0) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
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
                used = int(_read(folder / usage).strip() or 0) - int(stat.get(reclaimable, 0))
                available.append(int(most) - used)
    for resource_limit, used_key in _ULIMITS.items():
        soft, _ = resource.getrlimit(resource_limit)
        if soft != resource.RLIM_INFINITY:
            available.append(soft - sizes.get(used_key, 0))
    return max(0, min(available))


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


def largest_stage(model: PreTrainedModel) -> tuple[int, int]:
    """Parameter elements of the largest stage of a layerwise pass, and of the largest layer.

    The first is what the device holds of each model, the second is read ahead meanwhile. The stages are the embedding,
    every layer, and all other parts together: most of these come after the layers. The meta device is enough.
    """
    parts, sizes = decoder_parts(model), part_sizes(model)
    embedding = sum(sizes[name] for name in parts.outer if model.get_submodule(name) is input_embedding(model))
    rest = sum(sizes[name] for name in parts.outer) - embedding
    layer = max(sizes[name] for name in parts.layers)
    return max(layer, embedding, rest), layer


def widest_stage(model: PreTrainedModel, channels: ChannelInventory) -> int:
    """The largest number of channels in a layer, or outside the layers."""
    layers = decoder_parts(model).layers
    counts: Counter[str] = Counter()
    for module in channels.modules:
        counts[next((name for name in layers if module.name.startswith(f"{name}.")), "")] += module.count
    return max(counts.values())
