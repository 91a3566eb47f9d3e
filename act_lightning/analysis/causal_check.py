"""What patching did to the loss, with intervals, beside control channels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm.auto import tqdm
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
from act_lightning.checkpoints.models import load_model
from act_lightning.data.batches import collate, normalize_batch, shard, token_budget_batches
from act_lightning.data.cache import lengths
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.data.labels import Sample
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.evaluator import gather_lists
from act_lightning.evaluation.intervals import bootstrap
from act_lightning.masks import random_scores
from act_lightning.profiling.target import Target
from act_lightning.transfer.preparation import PreparedTransfer
from act_lightning.transfer.selection import SelectedSource, drop_unmatched, partner_channels


def random_channels(mask: Tensor, *key: object) -> Tensor:
    """As many channels as ``mask`` selects, drawn from all of the model's.

    Args:
        mask: Bool ``[channels]``.
        key: What is drawn from, such as a seed and a name.

    Returns:
        Bool ``[channels]``.
    """
    drawn = torch.zeros_like(mask)
    drawn[torch.topk(random_scores(mask.numel(), "random", *key), int(mask.sum())).indices] = True
    return drawn


def like_by_module(mask: Tensor, inventory: ChannelInventory, *key: object) -> Tensor:
    """As many channels of every module, so of every layer and type, as ``mask`` selects of it.

    They are drawn from those that ``mask`` leaves; where it takes more than half of a module, the rest is made up from
    its own.

    Args:
        mask: Bool ``[channels]``.
        inventory: The channels of the model.
        key: What is drawn from, such as a seed and a name.

    Returns:
        Bool ``[channels]``.
    """
    order = random_scores(mask.numel(), "like by module", *key) + (~mask).float()  # what is left comes first
    drawn = torch.zeros_like(mask)
    for _, span in inventory.spans():
        drawn[span.start + torch.topk(order[span], int(mask[span].sum())).indices] = True
    return drawn


SELECTED, RANDOM, ALIKE = "selected", "random", "same modules"
CONTROLS = (RANDOM, ALIKE)


@dataclass(frozen=True)
class Effect:
    """A difference of mean losses, in nats for each answer token, paired by sample.

    Attributes:
        intervention: ``patch``: the source's activations; ``ablate``: the target's own mean.
        channels: Which: ``selected``, ``random``, ``same modules``.
        against: What it is compared with: ``target``, or the same intervention on other channels.
        change: The mean difference; below 0 where the loss falls.
        low: Lower bound of its 95 % bootstrap interval over samples.
        high: Upper bound.
        size: The mean difference over its standard deviation (Cohen's d for paired samples); NaN for one sample, or
            where all differences are equal.
        gap: Share of the way from the target's loss to the source's; NaN where the source's is not the lower one.
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
    way = float((losses[SOURCE] - losses[TARGET]).mean())
    found = [_effect(SOURCE, SOURCE, TARGET, losses[SOURCE] - losses[TARGET], way)]
    for kind in (PATCH, ABLATE):
        groups = {name: _mean_of(losses, f"{kind}/{name}") for name in (SELECTED, *CONTROLS)}
        found += [_effect(kind, name, TARGET, values - losses[TARGET], way) for name, values in groups.items()]
        found += [_effect(kind, SELECTED, name, groups[SELECTED] - groups[name], way) for name in CONTROLS]
    return found


def _mean_of(losses: Mapping[str, Tensor], prefix: str) -> Tensor:
    """The mean over the draws of one control, sample by sample."""
    return torch.stack([values for name, values in losses.items() if name.startswith(prefix)]).mean(0)


def _effect(kind: str, channels: str, against: str, differences: Tensor, way: float) -> Effect:
    mean = float(differences.mean())
    spread = float(differences.std()) if len(differences) > 1 else 0.0
    size = mean / spread if spread > 0 else float("nan")
    gap = mean / way if way < 0 else float("nan")
    return Effect(kind, channels, against, mean, *bootstrap(differences), size, gap)


FOLDER = "causes"
_TOKENS_PER_BATCH = 2048


def check_causes(
    trainer: L.Trainer,
    target: Target,
    prepared: PreparedTransfer,
    held_out: AbilityDataModule,
    settings: CausesSettings,
) -> list[dict[str, Any]]:
    """Intervene on the target for every source and ability, and write ``<root>/causes/<source>/<ability>.json``.

    In the target, the channels of a mask give the source's activations (patch), or their own mean (ablate), at every
    position; the change of the answer tokens' loss is compared with that of as many random channels, and of as many
    of the same modules. Weights are not changed. Every process takes a share of the samples.

    Args:
        trainer: Its processes and devices are used.
        target: The target.
        prepared: The sources with their masks.
        held_out: Samples that no score was measured on, by the abilities' names.
        settings: How it is done.

    Returns:
        What was written, in order.

    Raises:
        ActError: An ability has no held-out sample, or a loss is NaN.
    """
    device, written = trainer.strategy.root_device, []
    with target.ready(device) as model:
        for source in prepared.sources:
            other = load_model(source.folder, target.dtype, device)
            for ability in source.masks:
                trial = _trial(model, other, prepared, source, ability, settings.repeats)
                samples = held_out.tokenized[ability].samples
                losses = _losses(trial, samples, trainer, f"{source.name}/{ability}")
                found = _record(prepared, source, ability, losses, settings)
                if trainer.is_global_zero:
                    path = Path(trainer.default_root_dir) / FOLDER / source.name / f"{ability}.json"
                    write_file(path, json.dumps(found, indent=2) + "\n")
                written.append(found)
    return written


def _trial(
    model: PreTrainedModel,
    other: PreTrainedModel,
    prepared: PreparedTransfer,
    source: SelectedSource,
    ability: str,
    repeats: int,
) -> PatchingExperiment:
    inventory, mask = prepared.inventory, source.masks[ability]
    variants = [Variant(SELECTED, mask)]
    for number in range(1, repeats + 1):
        key = prepared.seed, source.name, ability, number
        drawn = {RANDOM: random_channels(mask, *key), ALIKE: like_by_module(mask, inventory, *key)}
        variants += [
            Variant(f"{name} {number}", drop_unmatched(inventory, its, source.vocabulary))
            for name, its in drawn.items()
        ]
    return PatchingExperiment(model, other, inventory, variants, partner_channels(inventory, source.vocabulary))


def _losses(trial: PatchingExperiment, samples: Sequence[Sample], trainer: L.Trainer, label: str) -> dict[str, Tensor]:
    """The loss of every sample under every intervention, in the order of the samples, the same on all processes."""
    device = trainer.strategy.root_device
    mine = shard(token_budget_batches(lengths(samples), _TOKENS_PER_BATCH), trainer.global_rank, trainer.world_size)
    batches = [
        {
            name: values.to(device)
            for name, values in normalize_batch(collate([samples[i] for i in rows], 0), trial.target.config).items()
        }
        for rows in mine
    ]
    sums = position_sums(trial.target, batches, trial.places)
    means = {name: total[0] / total[1] for name, total in _summed(sums, trainer).items()}
    found: dict[str, list[float | int]] = {}
    with tqdm(batches, desc=f"intervening for {label}", disable=not trainer.is_global_zero) as shown:
        for rows, batch in zip(mine, shown, strict=True):
            found.setdefault("number", []).extend(rows)
            for name, values in trial.losses(batch, means).items():
                found.setdefault(name, []).extend(values.tolist())
    names = ["number", *trial.names]
    everywhere = gather_lists({name: found.get(name, []) for name in names})
    order = torch.tensor(everywhere.pop("number")).argsort()
    return {name: torch.tensor(values, dtype=torch.float64)[order] for name, values in everywhere.items()}


def _summed(sums: Mapping[str, Tensor], trainer: L.Trainer) -> dict[str, Tensor]:
    device = trainer.strategy.root_device
    reduced = {name: trainer.strategy.reduce(total.to(device), reduce_op="sum") for name, total in sums.items()}
    return {name: torch.as_tensor(total).cpu() for name, total in reduced.items()}


def _record(
    prepared: PreparedTransfer,
    source: SelectedSource,
    ability: str,
    losses: Mapping[str, Tensor],
    settings: CausesSettings,
) -> dict[str, Any]:
    """What the file says."""
    return {
        "source": source.name,
        "ability": ability,
        "selection": prepared.report["selection"],
        "ratio": float(source.ratio),
        "channels": int(source.masks[ability].sum()),
        "samples": len(losses[TARGET]),
        "repeats": settings.repeats,
        "seed": prepared.seed,
        "hashes": prepared.report["hashes"],
        "effects": [_plain(one) for one in effects(losses)],
        "losses": {name: values.tolist() for name, values in losses.items()},
    }


def _plain(effect: Effect) -> dict[str, Any]:
    """As JSON, which has no NaN."""
    return {name: None if value != value else value for name, value in asdict(effect).items()}


def _size(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def print_causes(found: Sequence[Mapping[str, Any]]) -> None:
    """A table of every source and ability: what was done, to which channels, and how the loss changed.

    Args:
        found: As :func:`check_causes` gives it.
    """
    for one in found:
        title = f"{one['source']}/{one['ability']}: {one['channels']:,} channels, {one['samples']} held-out samples"
        table = Table("intervention", "channels", "against", title=title, caption="change of loss, nats a token, 95 %")
        for name in ("change", "interval", "d"):
            table.add_column(name, justify="right", no_wrap=True)
        for effect in one["effects"]:
            interval = f"{effect['low']:+.2f} … {effect['high']:+.2f}"
            words = effect["intervention"], effect["channels"], effect["against"]
            table.add_row(*words, f"{effect['change']:+.3f}", interval, _size(effect["size"]))
        Console().print(table)
