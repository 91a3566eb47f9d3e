"""The causal check: on held-out samples, do the selected channels carry the ability, more than others would?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.box import SIMPLE
from torch import Tensor
from transformers import PreTrainedModel

from act_lightning.analysis.activation_patching import (
    ABLATE,
    PATCH,
    SOURCE,
    TARGET,
    PatchingExperiment,
    Variant,
    position_sums,
)
from act_lightning.analysis.causes_settings import CausesSettings
from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.reader import load_on_device
from act_lightning.console import Console, Table, progress_bar
from act_lightning.data.batches import batch_to_device, collate, normalize_batch, token_budget_batches
from act_lightning.data.cache import lengths
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.labels import Sample
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.evaluator import gather_lists
from act_lightning.evaluation.intervals import bootstrap
from act_lightning.masks import random_scores
from act_lightning.profiling.measurement import Target
from act_lightning.transfer.preparation import PreparedTransfer
from act_lightning.transfer.selection import SelectedSource, drop_unmatched, partner_channels

FOLDER = "causes"
SELECTED, RANDOM, ALIKE = "selected", "random", "same modules"
_CONTROLS = (RANDOM, ALIKE)
_TOKENS_PER_BATCH = 2048


def random_channels(mask: Tensor, *key: object) -> Tensor:
    """As many channels as ``mask`` selects, drawn from all by a key such as seed and name; both bool ``[channels]``."""
    drawn = torch.zeros_like(mask)
    drawn[torch.topk(random_scores(mask.numel(), "random", *key), int(mask.sum())).indices] = True
    return drawn


def like_by_module(mask: Tensor, inventory: ChannelInventory, *key: object) -> Tensor:
    """As many channels of every module as ``mask`` selects of it, drawn by a key; both bool ``[channels]``.

    They are drawn from those that ``mask`` leaves; if it takes more than half of a module, its own fill the rest.
    """
    order = random_scores(mask.numel(), "like by module", *key) + (~mask).float()  # unselected channels come first
    drawn = torch.zeros_like(mask)
    for _, span in inventory.spans():
        drawn[span.start + torch.topk(order[span], int(mask[span].sum())).indices] = True
    return drawn


@dataclass(frozen=True)
class Effect:
    """A difference of mean losses, in nats for each answer token, paired by sample.

    Attributes:
        intervention: ``patch``: the source's activations; ``ablate``: the target's own mean.
        channels: ``selected``, ``random`` or ``same modules``.
        against: ``target``, or the control channels with the same intervention.
        change: The mean difference; below 0 if the loss falls.
        low: Lower bound of its 95 % bootstrap interval over samples.
        high: Upper bound.
        size: The mean difference over its standard deviation (Cohen's d for paired samples); NaN for one sample, or
            if all differences are equal.
        gap: Share of the way from the target's loss to the source's; NaN unless the source's is lower.
    """

    intervention: str
    channels: str
    against: str
    change: float
    low: float
    high: float
    size: float
    gap: float


def effects(losses: Mapping[str, Tensor]) -> list[Effect]:
    """Every intervention against the target, and selected channels against each control.

    Args:
        losses: float64 ``[samples]``: ``target``, ``source`` and, for both interventions, ``patch/selected``,
            ``patch/random 1`` and so on; draws of one control are averaged.

    Raises:
        ActError: A loss is NaN or infinite.
    """
    for name, values in losses.items():
        if not bool(torch.isfinite(values).all()):
            problem, hint = "must be finite", "Look for NaN in the weights of both models, or compare them in float32."
            raise ActError(ConfigIssue(f"loss of {name}", "NaN or infinity", problem, hint))
    target, source = losses[TARGET], losses[SOURCE]
    way = float((source - target).mean())
    rows = [_effect(SOURCE, SOURCE, TARGET, source - target, way)]
    for kind in (PATCH, ABLATE):
        groups = {}
        for name in (SELECTED, *_CONTROLS):
            draws = [values for key, values in losses.items() if key.startswith(f"{kind}/{name}")]
            groups[name] = torch.stack(draws).mean(0)
        rows += [_effect(kind, name, TARGET, values - target, way) for name, values in groups.items()]
        rows += [_effect(kind, SELECTED, name, groups[SELECTED] - groups[name], way) for name in _CONTROLS]
    return rows


def _effect(kind: str, channels: str, against: str, differences: Tensor, way: float) -> Effect:
    mean = float(differences.mean())
    spread = float(differences.std()) if len(differences) > 1 else 0.0
    size = mean / spread if spread > 0 else float("nan")
    gap = mean / way if way < 0 else float("nan")
    return Effect(kind, channels, against, mean, *bootstrap(differences), size, gap)


def check_causes(
    trainer: L.Trainer,
    target: Target,
    prepared: PreparedTransfer,
    held_out: AbilityDataModule,
    settings: CausesSettings,
) -> list[dict[str, Any]]:
    """Intervene on the target for every source and ability, and write ``<root>/causes/<source>/<ability>.json``.

    In the target, the channels of a mask give the source's activations (patch), or their own mean (ablate), at every
    position; the change of the answer tokens' loss is compared with that of as many random channels, and of as many of
    the same modules. Weights are not changed. ``held_out`` has samples that no score was measured on, by the abilities'
    names; every process takes a share of them. Returns the content of the files, in order.

    Raises:
        ActError: An ability has no held-out sample, or a loss is NaN.
    """
    device, results = trainer.strategy.root_device, []
    with target.ready(device) as model:
        for source, ability, experiment in _experiments(model, target.dtype, prepared, settings.repeats):
            samples = held_out.tokenized[ability].samples
            losses = _measure_losses(experiment, samples, trainer, f"{source.name}/{ability}")
            result = {
                "source": source.name,
                "ability": ability,
                "selection": prepared.report["selection"],
                "ratio": float(source.ratio),
                "channels": int(source.masks[ability].sum()),
                "samples": len(losses[TARGET]),
                "repeats": settings.repeats,
                "seed": prepared.seed,
                "hashes": prepared.report["hashes"],
                "effects": [
                    {name: None if value != value else value for name, value in asdict(effect).items()}
                    for effect in effects(losses)  # JSON has no NaN
                ],
                "losses": {name: values.tolist() for name, values in losses.items()},
            }
            if trainer.is_global_zero:
                path = Path(trainer.default_root_dir) / FOLDER / source.name / f"{ability}.json"
                write_file(path, json.dumps(result, indent=2) + "\n")
            results.append(result)
    return results


def _experiments(
    target: PreTrainedModel, dtype: torch.dtype, prepared: PreparedTransfer, repeats: int
) -> Iterator[tuple[SelectedSource, str, PatchingExperiment]]:
    """For every source and ability, the selected channels and several draws of each control."""
    inventory = prepared.inventory
    for source in prepared.sources:
        source_model = load_on_device(source.folder, dtype, target.device)
        partners = partner_channels(inventory, source.vocabulary)
        for ability, mask in source.masks.items():
            variants = [Variant(SELECTED, mask)]
            for number in range(1, repeats + 1):
                key = prepared.seed, source.name, ability, number
                controls = {RANDOM: random_channels(mask, *key), ALIKE: like_by_module(mask, inventory, *key)}
                variants += [
                    Variant(f"{name} {number}", drop_unmatched(inventory, control, source.vocabulary))
                    for name, control in controls.items()
                ]
            yield source, ability, PatchingExperiment(target, source_model, inventory, variants, partners)


def _measure_losses(
    experiment: PatchingExperiment, samples: Sequence[Sample], trainer: L.Trainer, label: str
) -> dict[str, Tensor]:
    """The loss of every sample under every intervention, in the order of the samples, the same on all processes."""
    strategy, config = trainer.strategy, experiment.target.config
    device = strategy.root_device
    all_batches = token_budget_batches(lengths(samples), _TOKENS_PER_BATCH)
    indices = all_batches[trainer.global_rank :: trainer.world_size]
    batches = [
        batch_to_device(normalize_batch(collate([samples[i] for i in rows], 0), config), device) for rows in indices
    ]
    means = {}
    for name, local_sums in position_sums(experiment.target, batches, experiment.indices).items():
        sums = torch.as_tensor(strategy.reduce(local_sums, reduce_op="sum"))
        means[name] = sums[0] / sums[1]
    losses: dict[str, list[float | int]] = {name: [] for name in ("number", *experiment.names)}
    with progress_bar(batches, desc=f"intervening for {label}", disable=not trainer.is_global_zero) as progress:
        for rows, batch in zip(indices, progress, strict=True):
            losses["number"].extend(rows)
            for name, values in experiment.losses(batch, means).items():
                losses[name].extend(values.tolist())
    gathered = gather_lists(losses)
    order = torch.tensor(gathered.pop("number")).argsort()
    return {name: torch.tensor(values, dtype=torch.float64)[order] for name, values in gathered.items()}


def print_causes(results: Sequence[Mapping[str, Any]]) -> None:
    """Print a table for every source and ability: intervention, channels, and change of the loss."""
    for result in results:
        name = f"{result['source']}/{result['ability']}"
        title = f"{name}: {result['channels']:,} channels, {result['samples']} held-out samples"
        table = Table("intervention", "channels", "against", title=title, box=SIMPLE, pad_edge=False)
        table.caption = "change of loss, nats a token, 95 %"
        for column in ("change", "interval", "d"):
            table.add_column(column, justify="right", no_wrap=True)
        for effect in result["effects"]:
            interval = f"{effect['low']:+.2f} … {effect['high']:+.2f}"
            size = "–" if effect["size"] is None else f"{effect['size']:+.2f}"
            words = effect["intervention"], effect["channels"], effect["against"]
            table.add_row(*words, f"{effect['change']:+.3f}", interval, size)
        Console().print(table)
