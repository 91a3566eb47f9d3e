"""The models that a transfer is compared with: target, sources, and controls that move other channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from act_lightning.callbacks.preparation import PreparedTransfer, prepare
from act_lightning.callbacks.sources import AbilitySource
from act_lightning.checkpoints import load_model
from act_lightning.masks import candidates
from act_lightning.transfer import TransferSettings


def merged_model(target: Path, prepared: PreparedTransfer, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The target with a transfer applied, in memory."""
    model = load_model(target, dtype, device)
    with prepared.injection() as injection:
        for name in injection.names:
            injection.apply_(name, model.get_parameter(name).data)
    return model


def task_arithmetic(
    sources: Sequence[AbilitySource], done: PreparedTransfer, settings: TransferSettings
) -> PreparedTransfer:
    """All channels of the same sources at the same λ."""
    everything = replace(settings, selection="all", exclude=(), method="task_arithmetic")
    return _control(sources, done, everything)


def random_channels(
    sources: Sequence[AbilitySource], done: PreparedTransfer, settings: TransferSettings
) -> PreparedTransfer:
    """Random channels of the same sources at the same λ, as many parameters from each as the transfer moved."""
    allowed = done.inventory.count_elements(candidates(done.inventory, settings.exclude))
    budgets = {source.name: done.inventory.count_elements(source.mask) for source in done.sources}
    # A quotient that was rounded down would allow one parameter less: ⌊N·p⌋ must be the budget.
    ratios = {name: math.nextafter(budget / allowed, 1) for name, budget in budgets.items()}
    drawn = [replace(source, ratio=ratios[source.label]) for source in sources]
    return _control(drawn, done, replace(settings, selection="random", share="parameters", scope="global"))


def _control(sources: Sequence[AbilitySource], done: PreparedTransfer, settings: TransferSettings) -> PreparedTransfer:
    """A transfer without scores: one mask a source, for its abilities share their budget."""
    once = [replace(source, name=source.label, abilities=["all abilities"]) for source in sources]
    digests, nowhere = [done.report["hashes"]["target"]], Path("no scores are read")
    made = prepare(once, done.inventory, settings, nowhere, done.seed, digests, done.target)
    return replace(made, importance=done.importance if made.method.needs_importance else None)
