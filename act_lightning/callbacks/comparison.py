"""The models that a transfer is compared with: target, sources, and controls that move other channels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from act_lightning.architecture import require_language_model
from act_lightning.callbacks.injection import MaskedTaskVectorInjection, apply_transfer
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.models import locate
from act_lightning.console import Console
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.defaults import EVERY_MODULE
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.evaluation.evaluator import score_model
from act_lightning.evaluation.sandbox import sandbox_issues
from act_lightning.evaluation.tables import ItemScores, ModelRow, models_csv, models_table
from act_lightning.masks import eligible_channels
from act_lightning.profiling.measurement import named_checkpoint
from act_lightning.training.lightning_compat import isolate_rng
from act_lightning.training.sharding import Layout, back_on_device, load_like_trained, run_in_strategy
from act_lightning.training.together import collective_hook
from act_lightning.transfer.preparation import PreparedTransfer, TransferPlan, prepare
from act_lightning.transfer.settings import AbilitySource, TransferSettings

_TOKENS_PER_BATCH = 2048


class TransferComparison(L.Callback):
    """Evaluate target, sources, transfer and fine-tuned result, next to task arithmetic and random channels.

    The controls move all channels, and random channels of as many parameters as the transfer moved, from the same
    sources at the same λ. An item whose answer is one exact string counts when greedy decoding would give it and end
    the turn, which one teacher-forced pass decides; answers of other kinds are generated and graded. Every model is
    compared with the target on the same items (McNemar's exact test). The table is printed when fitting ends and
    written to ``<default_root_dir>/evaluations/comparison.json`` and ``.csv``.

    Attributes:
        rows: The models that were evaluated so far.
    """

    def __init__(self) -> None:
        self.rows: list[ModelRow] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a run without evaluation sets before any work is done."""
        if stage == "fit":
            raise_if_any(sandbox_issues(_evaluation_data(trainer).evaluations))

    @collective_hook
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the transfer before fine-tuning, and every model that it is compared with."""
        if self.rows:
            return  # restored from a checkpoint
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        injection = next((callback for callback in callbacks if isinstance(callback, MaskedTaskVectorInjection)), None)
        profiler = next((each for each in callbacks if isinstance(each, ActivationDifferenceProfiler)), None)
        name, revision = named_checkpoint(pl_module, profiler.target if profiler else None)
        target = None if name is None else locate(name, revision)
        model = require_language_model(pl_module)
        dtype = model.dtype
        with isolate_rng():
            if target is not None:
                self._evaluate("target", load_like_trained(trainer, target, dtype), None, trainer)
            if injection is None or injection.prepared is None:
                return
            prepared = injection.prepared
            for source in prepared.sources:
                self._evaluate(f"source {source.name}", load_like_trained(trainer, source.folder, dtype), None, trainer)
            if target is not None and profiler is not None:
                controls = {"task arithmetic": task_arithmetic, "random channels": random_channels}
                for label, make_control in controls.items():
                    control = make_control(profiler.sources or [], prepared, injection.settings)
                    share = control.parameter_share
                    self._evaluate(label, merged_model(trainer, target, control, dtype), share, trainer)
            self._evaluate("transfer", model, prepared.parameter_share, trainer)

    @collective_hook
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the result, print the table and write it."""
        share = next((row.share for row in self.rows if row.model == "transfer"), None)
        label = "fine-tuning" if share is None else "transfer + fine-tuning"
        with back_on_device(trainer):
            self._evaluate(label, require_language_model(pl_module), share, trainer)
        if trainer.is_global_zero:
            roles = {name: settings.role for name, settings in _evaluation_data(trainer).evaluations.items()}
            folder = Path(trainer.default_root_dir) / "evaluations"
            write_file(folder / "comparison.json", json.dumps([row.to_json() for row in self.rows], indent=2) + "\n")
            write_file(folder / "comparison.csv", models_csv(self.rows, roles))
            Console().print(models_table(self.rows, roles))

    def _evaluate(self, label: str, model: PreTrainedModel, share: float | None, trainer: L.Trainer) -> None:
        data, rank, world_size = _evaluation_data(trainer), trainer.global_rank, trainer.world_size
        items = sum(map(len, data.prompts.values()))
        with tqdm(desc=f"evaluating {label}", total=items, disable=not trainer.is_global_zero) as bar:

            def score() -> ItemScores:
                return score_model(
                    data, model, _TOKENS_PER_BATCH, rank, world_size, lambda scored: bar.update(scored * world_size)
                )

            scores = run_in_strategy(trainer, score)
        self.rows.append(ModelRow(label, share, scores))

    def state_dict(self) -> dict[str, Any]:
        """The rows of the models evaluated so far, for checkpoints."""
        return {"rows": [row.to_json() for row in self.rows]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the table of the run that is resumed."""
        self.rows = [ModelRow.from_json(row) for row in state_dict["rows"]]


def _evaluation_data(trainer: L.Trainer) -> AbilityDataModule:
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, AbilityDataModule) and data.evaluations:
        return data
    problem = "must hold evaluation sets for TransferComparison"
    raise ActError(
        ConfigIssue("data.evaluations", {}, problem, "Add one, such as {gsm: {path: gsm.jsonl, role: keep}}.")
    )


def merged_model(trainer: L.Trainer, target: Path, prepared: PreparedTransfer, dtype: torch.dtype) -> PreTrainedModel:
    """The target with a transfer applied, in memory."""
    model = load_like_trained(trainer, target, dtype)
    apply_transfer(prepared, Layout(model), target)
    return model


def task_arithmetic(
    sources: Sequence[AbilitySource], transfer: PreparedTransfer, settings: TransferSettings
) -> PreparedTransfer:
    """All channels of the same sources at the same λ."""
    return _control(
        sources,
        transfer,
        replace(settings, selection="all", include=EVERY_MODULE, exclude=(), method="task_arithmetic"),
    )


def random_channels(
    sources: Sequence[AbilitySource], transfer: PreparedTransfer, settings: TransferSettings
) -> PreparedTransfer:
    """Random channels of the same sources at the same λ, as many parameters from each as the transfer moved."""
    channels = transfer.inventory
    eligible = channels.count_elements(eligible_channels(channels, settings.include, settings.exclude))
    # A quotient that was rounded down would allow one parameter less: ⌊N·p⌋ must be the source's number of parameters.
    ratios = {
        source.name: math.nextafter(channels.count_elements(source.mask) / eligible, 1) for source in transfer.sources
    }
    with_ratios = [replace(source, ratio=ratios[source.label]) for source in sources]
    settings = replace(settings, selection="random", share="parameters", scope="global")
    return _control(with_ratios, transfer, settings)


def _control(
    sources: Sequence[AbilitySource], transfer: PreparedTransfer, settings: TransferSettings
) -> PreparedTransfer:
    """A transfer without scores, with one mask per source, because its abilities share one number of parameters."""
    sources = [replace(source, name=source.label, abilities=["all abilities"]) for source in sources]
    digests = [transfer.report["hashes"]["target"]]
    plan = TransferPlan(settings, sources, transfer.inventory, digests, transfer.seed, transfer.target)
    control = prepare(plan)
    return replace(control, fisher=transfer.fisher if control.method.needs_fisher else None)
