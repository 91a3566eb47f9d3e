"""What a run will take: channels and parameters that p selects, memory, disk, and time on this machine."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from act_lightning.architecture import DecoderSizes
from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.models import load_config, meta_model, resolve_dtype
from act_lightning.console import format_bytes
from act_lightning.errors import ConfigIssue
from act_lightning.masks import eligible_channels
from act_lightning.planning.checks import Run, process_count
from act_lightning.planning.training_forecast import optimizer_bytes, trained_dtype, training_parts
from act_lightning.profiling.memory import (
    device_memory,
    host_memory,
    largest_stage,
    runs_on_host,
    widest_stage,
)
from act_lightning.scorers.attribution import Attribution
from act_lightning.scorers.scorer import WeightScorer
from act_lightning.sweep.sweep_settings import grid
from act_lightning.transfer.selection import count_selected

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SCORE_BYTES = 4
_FISHER_BYTES = 4  # a parameter, in memory and in each file
_MERGE_TENSORS, _MERGE_BYTES = 3, 200_000_000  # what a merge may take at most
_WITH_TASK_VECTOR = 2  # a model between target and source, and their difference: one source at a time
_SAVINGS = {
    "profiling": ("profile.placement", "Stream the pair (layerwise), or compare it in bfloat16."),
    "training": ("trainer.strategy", "Shard with FSDP over more devices, train in bf16, take an optimizer of 8 bits."),
    "fisher": ("model.dtype", "Gather Fisher information in bfloat16 (model.dtype), or on a larger device."),
    "merge": ("model.target", "Merge on a larger machine."),
    "sweep": ("model.dtype", "Evaluate in bfloat16 (model.dtype), or on a larger device."),
}
_TIMED_TOKENS, _REPEATS = 256, 3
_VOCABULARY = 2048  # a whole one would take gigabytes; the time of the rest is in proportion


def profiles(run: Run, verb: str) -> bool:
    """Whether a verb has to measure scores, as far as settings say."""
    return bool(run.sources) and (verb == "profile" or run.transfer.needs_profiling)


def _trains(run: Run, verb: str) -> bool:
    return verb == "fit" or (verb == "sweep" and run.sweep is not None and run.sweep.fit)


def selection_counts(run: Run, channels: ChannelInventory) -> dict[str, int | None]:
    """How many channels each ability's mask selects; ``None`` where only the scores can tell.

    Keyed by ability; by source and ability where several sources have one of that name. Empty if the settings are
    wrong.
    """
    settings = run.transfer.settings
    if settings.issues() or run.profiler.issues() or run.transfer.selection_issues(channels, run.sources):
        return {}
    names = [ability for source in run.sources for ability in source.abilities]
    counts = {}
    for source in run.sources:
        count = count_selected(channels, settings, settings.ratio if source.ratio is None else source.ratio)
        for ability in source.abilities:
            counts[ability if names.count(ability) == 1 else f"{source.label}/{ability}"] = count
    return counts


def parameter_ranges(run: Run, channels: ChannelInventory, counts: dict[str, int | None]) -> dict[str, dict[str, int]]:
    """How many parameters that many channels own at ``least``, at ``most``, and ``expected`` if all are equally likely.

    Which channels they are depends on the scores. An element that a row and a column of a tied matrix share counts
    for both here, so that ``most`` may be a little too large.

    Args:
        run: The sections of the config.
        channels: The target's.
        counts: As from :func:`selection_counts`; abilities without a count are left out.
    """
    if not counts:
        return {}
    settings = run.transfer.settings
    sizes = channels.sizes()[eligible_channels(channels, settings.include, settings.exclude)].sort().values
    sums = sizes.cumsum(0)
    ranges = {}
    for name, count in counts.items():
        if count:
            bounds = {
                "least": int(sums[count - 1]),
                "expected": round(int(sums[-1]) * count / len(sums)),
                "most": int(sums[-1] - (sums[-count - 1] if count < len(sums) else 0)),
            }
            ranges[name] = {key: min(number, channels.parameters) for key, number in bounds.items()}
    return ranges


def memory_forecast(run: Run, channels: ChannelInventory, target: Path, verb: str) -> dict[str, int]:
    """Bytes that one process holds at the peaks of ``profiling``, ``fisher``, ``merge``, ``sweep`` and ``training``.

    What a verb does not do takes nothing. ``training`` and ``profiling`` are sums of the entries that begin with their
    names; activations and outputs are those of a batch of full length, all of it answers. ``host`` and ``device`` are
    what this machine has.
    """
    memory = {"profiling": 0, "fisher": 0, "merge": 0, "sweep": 0, "training": 0}
    compared = resolve_dtype(run.model.weights_dtype, target)
    if run.sources:
        elements = _profiled_elements(run, channels, target, verb)
        memory["profiling"] = sum(elements.values()) * compared.itemsize
        memory |= {f"profiling_{name}": count * compared.itemsize for name, count in elements.items()}
        if run.transfer.settings.needs_fisher:
            memory["fisher"] = channels.parameters * (compared.itemsize + _FISHER_BYTES)
    if verb == "merge":
        memory["merge"] = _MERGE_TENSORS * _largest(channels) * resolve_dtype("auto", target).itemsize + _MERGE_BYTES
    if verb == "sweep":
        memory["sweep"] = channels.parameters * compared.itemsize  # one model, whatever the number of points
    if _trains(run, verb):
        parts = training_parts(run, channels.parameters, target)
        memory |= {"training": sum(parts.values()), **{f"training_{name}": size for name, size in parts.items()}}
    device = device_memory()
    return memory | {"host": host_memory()} | ({} if device is None else {"device": device})


def _largest(channels: ChannelInventory) -> int:
    """Elements of the largest parameter."""
    return max((prod(shape) for shape in channels.shapes.values()), default=0)


def _profiled_elements(run: Run, channels: ChannelInventory, target: Path, verb: str) -> dict[str, int]:
    """Elements in memory while scores are measured; none to speak of if weights are read some rows at a time.

    ``weights`` are those of all models; with placement layerwise and offload those of the largest stage of each, on
    the host also of the layer that is read ahead. ``outputs`` are the target's, which wait for the sources', and a
    model's intermediate values. Hidden states between stages, which layerwise keeps on the host in at most half of the
    free memory, are not counted. ``auto`` is layerwise if this machine cannot hold the whole pair.
    """
    if not profiles(run, verb) or isinstance(run.transfer.settings.scorer, WeightScorer):
        return {}
    on_host, placement = runs_on_host(run.trainer), run.profiler.placement
    intermediate, tokens = DecoderSizes.of(load_config(target)).peak_features, run.profiler.tokens_per_batch
    attributed = isinstance(run.transfer.settings.scorer, Attribution)
    if attributed:
        models, resident = _WITH_TASK_VECTOR, {"weights": _WITH_TASK_VECTOR * channels.parameters + _largest(channels)}
    else:
        models = 1 + _simultaneous_sources(run)
        resident = {"weights": models * channels.parameters, "outputs": tokens * (channels.total + intermediate)}
    available = host_memory() if on_host else device_memory()
    itemsize = resolve_dtype(run.model.weights_dtype, target).itemsize
    if placement == "auto" and available is not None and sum(resident.values()) * itemsize > available:
        placement = "layerwise"
    if placement in ("auto", "resident") or (placement == "offload" and on_host):
        return resident
    skeleton = meta_model(target)
    stage, next_layer = largest_stage(skeleton)
    weights = models * (stage + (next_layer if on_host else 0))
    if attributed:
        return {"weights": weights + _largest(channels)}
    width = widest_stage(skeleton, channels) if placement == "layerwise" else channels.total
    return {
        "weights": weights,
        "outputs": tokens * (width + intermediate),
    }


def _simultaneous_sources(run: Run) -> int:
    """The most sources that are in memory with the target: those linked by common abilities are profiled together."""
    groups: list[tuple[set[str], int]] = []
    for source in run.sources:
        linked = [group for group in groups if group[0] & set(source.abilities)]
        groups = [group for group in groups if group not in linked]
        names = set(source.abilities).union(*(group[0] for group in linked))
        groups.append((names, 1 + sum(group[1] for group in linked)))
    return max(size for _, size in groups)


def disk_forecast(run: Run, channels: ChannelInventory, target: Path, verb: str) -> dict[str, int]:
    """Bytes of scores, Fisher information, exported model and a checkpoint, as far as a verb writes them, and free."""
    stored = resolve_dtype(run.model.export_dtype, target)
    root = run.root.absolute()
    existing = next(path for path in (root, *root.parents) if path.is_dir())
    abilities = [ability for source in run.sources for ability in source.abilities]
    # Fisher information is one file an ability for each source, and for the target.
    fisher_files = len(abilities) + len(set(abilities)) if run.transfer.settings.needs_fisher else 0
    scorer, score_files = run.transfer.settings.scorer, len(abilities) if profiles(run, verb) else 0
    if scorer is None or scorer.needs_samples:
        score_files *= 1 + run.profiler.sampling(run.transfer.settings).chunk_count
    trained = trained_dtype(run)
    checkpointed = trained.itemsize + optimizer_bytes(run.model.optimizer, trained)
    return {
        "scores": score_files * channels.total * _SCORE_BYTES,
        "fisher": fisher_files * channels.parameters * _FISHER_BYTES,
        "model": _exported_models(run, verb) * channels.parameters * stored.itemsize,
        "checkpoint": round(channels.parameters * checkpointed) if _trains(run, verb) else 0,
        "free": shutil.disk_usage(existing).free,
    }


def _exported_models(run: Run, verb: str) -> int:
    """How many exported models are on the disk at once."""
    if verb != "sweep":
        return int(verb != "profile")
    if run.sweep is None or not run.sweep.fit:
        return 0
    if not run.sweep.keep_models:
        return 1
    if run.sweep.sampler != "grid":
        return (run.sweep.trials or 0) * len(run.sweep.compared)
    try:
        return len(grid(run.sweep, run.transfer.settings))
    except ValueError:
        return 0  # a scale or ratio that is no number is reported elsewhere


def resource_issues(run: Run, disk: Mapping[str, int], memory: Mapping[str, int], verb: str) -> list[ConfigIssue]:
    """Warnings if disk or memory of this machine do not suffice; no errors, because another machine may be meant."""
    issues = []
    needed = (
        sum(disk.values()) - disk["free"] + disk["checkpoint"]
    )  # the next checkpoint is written before the last goes
    if needed > disk["free"]:
        message = f"scores, model and two checkpoints, the last and the next, take {format_bytes(needed)}"
        message += f", and {format_bytes(disk['free'])} are free"
        hint = "Choose a folder on a larger disk."
        issues.append(ConfigIssue("trainer.default_root_dir", ..., message, hint, "warning"))
    on_host = runs_on_host(run.trainer)
    processes = (process_count(run.trainer) or 1) // int(run.trainer.get("num_nodes") or 1) if on_host else 1
    for work, (setting, hint) in _SAVINGS.items():
        kind = "host" if on_host or work == "merge" else "device"
        needed, available = memory[work] * (1 if work == "merge" else processes), memory.get(kind)
        if available is not None and needed > available:
            message = f"{work} takes {format_bytes(needed)}, and this machine's {kind} has {format_bytes(available)}"
            issues.append(ConfigIssue(setting, ..., message, hint, "warning"))
    scorer = run.transfer.settings.scorer
    if profiles(run, verb) and isinstance(scorer, Attribution):
        message = (
            "attribution holds a model between target and source, their difference, and the gradient of one parameter "
            "at a time; and, not counted here, what every layer gives for a batch of up to "
            f"{scorer.tokens_per_batch:,} tokens"
        )
        hint = "Lower its tokens_per_batch where memory is short."
        issues.append(ConfigIssue("transfer.selection", ..., message, hint, "note"))
    return issues


def time_forecast(run: Run, target: Path, verb: str) -> dict[str, float]:
    """Seconds of ``profiling`` and ``training`` on this machine, and the number of tokens behind them.

    The abilities are read and tokenized. The model's time for a token is that of one layer and a small vocabulary, and
    the rest in proportion: layers from the step to two of them, vocabulary from the step to twice its size. Speed does
    not depend on the weights, so they are random.

    Raises:
        ActError: The abilities cannot be read.
    """
    tokens = {
        name: sum(len(sample.input_ids) for sample in ability.samples) for name, ability in run.data.tokenized.items()
    }
    profiled = sum(tokens[name] for source in run.sources for name in source.abilities) if profiles(run, verb) else 0
    epochs = int(run.trainer.get("max_epochs") or 1)
    trained = epochs * sum(tokens[name] for name in run.data.train) if verb == "fit" else 0
    config, processes = load_config(target), process_count(run.trainer) or 1
    device = torch.device("cpu" if runs_on_host(run.trainer) else "cuda")
    profiled_dtype = resolve_dtype(run.model.weights_dtype, target)
    half = str(run.trainer.get("precision") or "").startswith("bf16") and device.type == "cuda"
    trained_in = torch.bfloat16 if half else torch.float32
    forward = _seconds_per_token(config, profiled_dtype, device, backward=False) if profiled else 0.0
    step = _seconds_per_token(config, trained_in, device, backward=True) if trained else 0.0
    return {
        "profiling": 2 * profiled * forward / processes,
        "training": trained * step / processes,
        "profiled_tokens": profiled,
        "trained_tokens": trained,
    }


def _seconds_per_token(config: PretrainedConfig, dtype: torch.dtype, device: torch.device, backward: bool) -> float:
    base = _time_pass(config, 1, _VOCABULARY, dtype, device, backward)
    layer = max(_time_pass(config, 2, _VOCABULARY, dtype, device, backward) - base, 0.0)
    vocabulary = max(_time_pass(config, 1, 2 * _VOCABULARY, dtype, device, backward) - base, 0.0)
    sizes = DecoderSizes.of(config)
    return base + layer * (sizes.layers - 1) + vocabulary * max(sizes.vocabulary / _VOCABULARY - 1, 0.0)


def _time_pass(
    config: PretrainedConfig, layers: int, vocabulary: int, dtype: torch.dtype, device: torch.device, backward: bool
) -> float:
    """Seconds per token of a random model of the same widths: the fastest of a few passes, after one to warm up."""
    from transformers import AutoModelForCausalLM

    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers, text.vocab_size = layers, vocabulary
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None  # they may lie beyond the reduced vocabulary
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(small, dtype=dtype, trust_remote_code=False).to(device)
    ids = torch.arange(_TIMED_TOKENS, device=device).unsqueeze(0)
    seconds = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        if backward:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        else:
            with torch.inference_mode():
                model(input_ids=ids, use_cache=False)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / _TIMED_TOKENS
