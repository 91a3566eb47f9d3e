"""Scores from module outputs: run target and sources over the samples of each ability, and write what they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PretrainedConfig

from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.compatibility import match_vocabularies
from act_lightning.console import progress_bar
from act_lightning.data.cache import lengths
from act_lightning.errors import ActError
from act_lightning.masks import overlap
from act_lightning.profiling.channel_means import ChannelMeans, float64_device
from act_lightning.profiling.measurement import Measurement, Target, save
from act_lightning.profiling.memory import PairSettings
from act_lightning.profiling.pair import Pair
from act_lightning.profiling.placement import open_pair
from act_lightning.profiling.samples import MeasuredScores, Sampling
from act_lightning.scorers.scorer import ActivationScorer
from act_lightning.scores import name_experts, read_record, read_scores, unreached_experts
from act_lightning.transfer.selection import partner_channels


def measure_activations(
    pending: Sequence[Measurement],
    target: Target,
    scorer: ActivationScorer,
    sampling: Sampling,
    settings: PairSettings,
    trainer: L.Trainer,
) -> None:
    """Load the target and the sources of a group once, measure all abilities of the group, and write their scores.

    The target runs once for all sources that are measured on the same samples.

    Raises:
        ActError: If a score is NaN or infinite, or a module gives no output.
    """
    channels = target.inventory()
    for group in groups(pending):
        folders = dict.fromkeys(measurement.folder for measurement in group)
        vocabularies = {folder: target.folder and match_vocabularies(target.folder, folder) for folder in folders}
        partners = {folder: partner_channels(channels, match or None) for folder, match in vocabularies.items()}
        by_samples: dict[str, list[Measurement]] = {}
        for measurement in group:
            by_samples.setdefault(measurement.samples.fingerprint, []).append(measurement)
        with open_pair(target, folders, settings, trainer) as (pair, config):
            for same_samples in by_samples.values():
                batching = config, settings.tokens_per_batch, trainer.global_rank, trainer.world_size
                _measure_samples(same_samples, pair, batching, channels, partners, scorer, sampling, trainer)
                trainer.strategy.barrier("scores written")


def groups(pending: Sequence[Measurement]) -> list[list[Measurement]]:
    """Measurements whose sources should be in memory together: those that share an ability's samples."""
    result: list[list[Measurement]] = []
    for measurement in pending:
        related = [
            group
            for group in result
            if any(
                measurement.source is other.source or measurement.samples.fingerprint == other.samples.fingerprint
                for other in group
            )
        ]
        result = [group for group in result if group not in related]
        result.append([*(other for group in related for other in group), measurement])
    return result


def _measure_samples(
    group: Sequence[Measurement],
    pair: Pair,
    batching: tuple[PretrainedConfig, int, int, int],
    channels: ChannelInventory,
    partners: Mapping[Path, Mapping[str, Tensor]],
    scorer: ActivationScorer,
    sampling: Sampling,
    trainer: L.Trainer,
) -> None:
    """Run the pair on this process's share of the same samples until the masks of all sources are stable; save scores.

    Args:
        group: Measurements on the same samples.
        pair: The target and the sources of the group.
        batching: Config, tokens per batch, rank and number of processes, as :meth:`AbilitySamples.batches` takes them.
        channels: Those of the target.
        partners: By source folder, the source's number of each channel; see :class:`ChannelMeans`.
        scorer: What is averaged.
        sampling: In which chunks samples are read, and when to stop.
        trainer: Its processes are used.
    """
    device, samples = float64_device(trainer.strategy.root_device), group[0].samples
    means = [ChannelMeans(channels, scorer, partners[m.folder], sampling.chunk_count).to(device) for m in group]
    for mean in means:  # a process may get no samples, and torchmetrics would warn then
        nothing = torch.empty(0, channels.modules[0].count)
        mean.update(channels.modules[0].name, nothing, nothing, nothing)
    accumulators = [(measurement.folder, mean) for measurement, mean in zip(group, means, strict=True)]
    total, results = sum(lengths(samples.samples)), [MeasuredScores(torch.empty(0))]
    title = f"profiling {', '.join(measurement.label for measurement in group)}"
    with progress_bar(total=total, unit="tok", desc=title, disable=not trainer.is_global_zero) as bar:
        for part in sampling.rounds(len(samples.samples)):
            for batch, _ in pair.run(samples.batches(*batching, sampling.chunk_count, part), accumulators):
                tokens = int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum())
                bar.update(min(tokens * trainer.world_size, total - bar.n))  # about as many in every process
            results = []
            for measurement, mean in zip(group, means, strict=True):
                result = MeasuredScores(mean.compute().cpu(), mean.compute_chunks(), part.stop)
                result = replace(result, usage=mean.compute_usage())
                results.append(sampling.with_overlap(measurement.source, samples, channels, result))
            if all(result.is_stable for result in results):
                break
    for measurement, result in zip(group, results, strict=True):
        if trainer.is_global_zero:
            _report_precision(measurement, channels, result.scores, sampling)
        if unreached := unreached_experts(result.usage):
            names = f"{name_experts(unreached)}; the scores of these experts are 0"
            rank_zero_info(f"{measurement.label}: no answer token is routed to {names}")
        save(measurement, channels, result, trainer)


def _report_precision(measurement: Measurement, channels: ChannelInventory, scores: Tensor, sampling: Sampling) -> None:
    """Say how much of the mask by saved scores of another precision, now replaced, the new scores select as well."""
    expected = measurement.record
    try:
        saved = read_record(measurement.path)
        if saved.dtype == expected.dtype or replace(saved, dtype=expected.dtype).changes(expected):
            return
        saved_scores = read_scores(measurement.path, channels)
    except ActError:
        return  # there are none that can be read
    if bool(scores.isfinite().all()):
        mask = partial(sampling.mask, measurement.source, channels)
        share = overlap(mask(saved_scores), mask(scores))
        selected = f"{share:.1%} of the mask in {saved.dtype} is also selected in {expected.dtype}"
        rank_zero_info(f"{measurement.label}: {selected}")
