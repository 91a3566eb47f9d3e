"""What p gives: how many channels the masks of a run will select, and how many parameters these may own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path

from act_lightning.architecture import DecoderSizes
from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.models import load_config, meta_model, resolve_dtype, stored_dtype
from act_lightning.masks import eligible_channels
from act_lightning.planning.problem import Problem
from act_lightning.planning.run import Run
from act_lightning.planning.training_checks import process_count
from act_lightning.planning.training_memory import optimizer_bytes, trained_dtype, training_parts
from act_lightning.profiling.memory import device_memory, host_memory, pair_needs, runs_on_host, widest_stage
from act_lightning.scorers.attribution import Attribution
from act_lightning.scorers.scorer import WeightScorer
from act_lightning.sweep.points import grid
from act_lightning.transfer.selection import count_selected

_KEYS = ("least", "expected", "most")


def selection_counts(run: Run, channels: ChannelInventory) -> dict[str, int | None]:
    """How many channels each ability's mask selects; ``None`` where only the scores can tell.

    Keyed by ability; by source and ability where several sources have one of that name. Empty where the settings are
    refused.
    """
    settings = run.transfer.settings
    if settings.issues() or run.profiler.issues() or run.transfer.selection_issues(channels, run.sources):
        return {}
    names = [ability for source in run.sources for ability in source.abilities]
    return {
        ability if names.count(ability) == 1 else f"{source.label}/{ability}": count_selected(
            channels, settings, settings.ratio if source.ratio is None else source.ratio
        )
        for source in run.sources
        for ability in source.abilities
    }


def parameter_ranges(run: Run, channels: ChannelInventory, counts: dict[str, int | None]) -> dict[str, dict[str, int]]:
    """How many parameters that many channels own at ``least``, at ``most``, and if any are ``expected`` alike.

    Which channels they are is for the scores to say. An element that a row and a column of a tied matrix share counts
    for both here, so that ``most`` may be a little too large.

    Args:
        run: The run.
        channels: The channels of the target.
        counts: What :func:`selection_counts` found; what only the scores can tell is left out.
    """
    if not counts:
        return {}
    sizes = channels.sizes()[eligible_channels(channels, run.transfer.settings.exclude)].sort().values
    sums = sizes.cumsum(0)
    found = {}
    for name, count in counts.items():
        if count:
            least, most = int(sums[count - 1]), int(sums[-1] - (sums[-count - 1] if count < len(sums) else 0))
            expected = round(int(sums[-1]) * count / len(sums))
            bounds = [min(number, channels.parameters) for number in (least, expected, most)]
            found[name] = dict(zip(_KEYS, bounds, strict=True))
    return found


_SCORE_BYTES = 4
_FISHER_BYTES = 4  # a parameter, in memory and in each file
_MERGE_TENSORS, _MERGE_BYTES = 3, 200_000_000  # what a merge may take at most
_WITH_TASK_VECTOR = 2  # a model between target and source, and their difference: one source at a time
_LESS = {
    "profiling": ("profile.placement", "Stream the pair (layerwise), or compare it in bfloat16."),
    "training": ("trainer.strategy", "Shard with FSDP over more devices, train in bf16, take an optimizer of 8 bits."),
    "fisher": ("model.dtype", "Gather Fisher information in bfloat16 (model.dtype), or on a larger device."),
    "merge": ("model.target", "Merge on a larger machine."),
    "sweep": ("model.dtype", "Evaluate in bfloat16 (model.dtype), or on a larger device."),
}


def memory_forecast(run: Run, channels: ChannelInventory, target: Path, verb: str) -> dict[str, int]:
    """Bytes that one process holds at the peaks of ``profiling``, ``fisher``, ``merge``, ``sweep`` and ``training``.

    What a verb does not do takes nothing. ``training`` and ``profiling`` are sums of the entries that begin with their
    names; activations and outputs are told for a batch of full length, all of it answers. ``host`` and ``device`` are
    what this machine has.
    """
    found = {"profiling": 0, "fisher": 0, "merge": 0, "sweep": 0, "training": 0}
    compared = resolve_dtype(run.model.weights_dtype, target)
    if run.sources:
        elements = _profiled_elements(run, channels, target, verb)
        found["profiling"] = sum(elements.values()) * compared.itemsize
        found |= {f"profiling_{name}": count * compared.itemsize for name, count in elements.items()}
        if run.transfer.needs_fisher:
            found["fisher"] = channels.parameters * (compared.itemsize + _FISHER_BYTES)
    if verb == "merge":
        found["merge"] = _MERGE_TENSORS * _largest(channels) * stored_dtype(target).itemsize + _MERGE_BYTES
    if verb == "sweep":
        found["sweep"] = channels.parameters * compared.itemsize  # one model, whatever the number of points
    if _trains(run, verb):
        parts = training_parts(run, channels.parameters, target)
        found |= {"training": sum(parts.values()), **{f"training_{name}": size for name, size in parts.items()}}
    device = device_memory()
    return found | {"host": host_memory()} | ({} if device is None else {"device": device})


def _trains(run: Run, verb: str) -> bool:
    return verb == "fit" or (verb == "sweep" and run.sweep is not None and run.sweep.fit)


def _models_written(run: Run, verb: str) -> int:
    """How many exported models lie on the disk at once."""
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
        return 0  # a scale or ratio that is no number is told elsewhere


def _largest(channels: ChannelInventory) -> int:
    """Elements of the largest parameter."""
    return max((prod(shape) for shape in channels.shapes.values()), default=0)


def _profiled_elements(run: Run, channels: ChannelInventory, target: Path, verb: str) -> dict[str, int]:
    """Elements in memory while scores are measured; none to speak of where weights are read some rows at a time.

    ``weights`` are those of all models; under placement layerwise and offload those of the largest stage of each, on
    the host also of the layer that is read ahead. ``outputs`` are the target's, which wait for the sources', and what
    there is beside them while a model computes. Hidden states between stages, which are layerwise on the host and
    take half of what memory is left there at most, are not counted. ``auto`` is layerwise where this machine cannot
    hold the whole pair.
    """
    if not profiles(run, verb) or isinstance(run.transfer.scorer, WeightScorer):
        return {}
    if isinstance(run.transfer.scorer, Attribution):
        return {"weights": _WITH_TASK_VECTOR * channels.parameters + _largest(channels)}
    models, on_host, placement = 1 + _sources_together(run), runs_on_host(run.trainer), run.profiler.placement
    beside = DecoderSizes.of(load_config(target)).peak_features
    whole = {
        "weights": models * channels.parameters,
        "outputs": run.profiler.tokens_per_batch * (channels.total + beside),
    }
    room = host_memory() if on_host else device_memory()
    itemsize = resolve_dtype(run.model.weights_dtype, target).itemsize
    if placement == "auto" and room is not None and sum(whole.values()) * itemsize > room:
        placement = "layerwise"
    if placement in ("auto", "resident") or (placement == "offload" and on_host):
        return whole
    skeleton = meta_model(target)
    needs = pair_needs(skeleton, 1, models)
    at_once = widest_stage(skeleton, channels) if placement == "layerwise" else channels.total
    return {
        "weights": needs.stage + (needs.next_stage if on_host else 0),
        "outputs": run.profiler.tokens_per_batch * (at_once + beside),
    }


def attribution_notes(run: Run, verb: str) -> list[Problem]:
    """What a backward pass takes that ``profiling`` does not count."""
    scorer = run.transfer.scorer
    if not profiles(run, verb) or not isinstance(scorer, Attribution):
        return []
    message = (
        "attribution holds a model between target and source, their difference, and the gradient of one parameter at a"
        f" time; and, not counted here, what every layer gives for a batch of up to {scorer.tokens_per_batch:,} tokens"
    )
    return [Problem("note", "transfer.selection", message, "Lower its tokens_per_batch where memory is short.")]


def profiles(run: Run, verb: str) -> bool:
    """Whether a verb has to measure scores, as far as settings tell."""
    return bool(run.sources) and (verb == "profile" or run.transfer.needs_profiling)


def disk_forecast(run: Run, channels: ChannelInventory, target: Path, verb: str) -> dict[str, int]:
    """Bytes of scores, Fisher information, exported model and a checkpoint, as far as a verb writes them, and free."""
    stored = stored_dtype(target) if run.model.export_dtype == "auto" else resolve_dtype(run.model.export_dtype, target)
    root = run.root.absolute()
    place = next(path for path in (root, *root.parents) if path.is_dir())
    abilities = sum(len(source.abilities) for source in run.sources) if profiles(run, verb) else 0
    trained = trained_dtype(run)
    kept = trained.itemsize + optimizer_bytes(run.model.optimizer, trained)
    return {
        "scores": abilities * (1 + _chunks(run)) * channels.total * _SCORE_BYTES,
        "fisher": _fisher_files(run) * channels.parameters * _FISHER_BYTES,
        "model": _models_written(run, verb) * channels.parameters * stored.itemsize,
        "checkpoint": round(channels.parameters * kept) if _trains(run, verb) else 0,
        "free": shutil.disk_usage(place).free,
    }


def _chunks(run: Run) -> int:
    """How many chunks scores are kept of, beside those of all samples."""
    scorer = run.transfer.scorer
    reads = scorer is None or scorer.needs_samples
    return run.profiler.sampling(run.transfer.settings).kept if reads else 0


def _fisher_files(run: Run) -> int:
    """How many files of Fisher information the method needs: one an ability for each source, and for the target."""
    abilities = [ability for source in run.sources for ability in source.abilities]
    return len(abilities) + len(set(abilities)) if run.transfer.needs_fisher else 0


def space_problems(disk: Mapping[str, int]) -> list[Problem]:
    """A warning where what a run writes does not fit on the disk; a checkpoint is written beside the one before it."""
    needed = sum(disk.values()) - disk["free"] + disk["checkpoint"]
    if needed <= disk["free"]:
        return []
    what = f"scores, model and two checkpoints, the last and the next, take {needed / 1e9:.1f} GB"
    message = f"{what}, and {disk['free'] / 1e9:.1f} GB are free"
    return [Problem("warning", "trainer.default_root_dir", message, "Choose a folder on a larger disk.")]


def memory_problems(run: Run, memory: Mapping[str, int]) -> list[Problem]:
    """Warnings where this machine has too little; another machine may be meant, so they are no errors."""
    on_host = runs_on_host(run.trainer)
    processes = (process_count(run.trainer) or 1) // int(run.trainer.get("num_nodes") or 1) if on_host else 1
    found = []
    for work, (setting, remedy) in _LESS.items():
        kind = "host" if on_host or work == "merge" else "device"
        needed, there = memory[work] * (1 if work == "merge" else processes), memory.get(kind)
        if there is not None and needed > there:
            message = f"{work} takes {needed / 1e9:.1f} GB, and this machine's {kind} has {there / 1e9:.1f} GB"
            found.append(Problem("warning", setting, message, remedy))
    return found


def _sources_together(run: Run) -> int:
    """The most sources that are in memory beside the target: those that an ability links are profiled together."""
    groups: list[tuple[set[str], int]] = []
    for source in run.sources:
        linked = [group for group in groups if group[0] & set(source.abilities)]
        groups = [group for group in groups if group not in linked]
        names = set(source.abilities).union(*(group[0] for group in linked))
        groups.append((names, 1 + sum(group[1] for group in linked)))
    return max(size for _, size in groups)
