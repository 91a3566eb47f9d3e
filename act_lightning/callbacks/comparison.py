"""The models that a transfer is compared with: target, sources, and controls that move other channels."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from transformers import PreTrainedModel

from act_lightning.architecture import require_language_model
from act_lightning.callbacks.injection import MaskedTaskVectorInjection, apply_transfer
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.callbacks.root_writer import RootWriter
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.models import locate
from act_lightning.console import Console, progress_bar
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.defaults import EVERY_MODULE
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.escaping import file_name
from act_lightning.evaluation.evaluator import score_model
from act_lightning.evaluation.results import ROLES
from act_lightning.evaluation.sandbox import sandbox_issues
from act_lightning.evaluation.tables import (
    FINE_TUNING_ALONE,
    ItemScores,
    ModelRow,
    comparison_findings,
    models_csv,
    models_table,
)
from act_lightning.masks import eligible_channels
from act_lightning.profiling.measurement import named_checkpoint
from act_lightning.training.lightning_compat import callbacks_of, isolate_rng
from act_lightning.training.sharding import Layout, back_on_device, load_like_trained, run_in_strategy
from act_lightning.training.together import collective_hook
from act_lightning.transfer.preparation import PreparedTransfer, TransferPlan, count_by_type, prepare
from act_lightning.transfer.settings import AbilitySource, TransferSettings, scale_issues

_TOKENS_PER_BATCH = 2048


class FitEvaluation(L.Callback):
    """Evaluate a fit after its transfer and after fine-tuning.

    Args:
        label: The name of the transfer in the table.

    Attributes:
        rows: The models that were evaluated so far.
    """

    def __init__(self, label: str = "transfer", ignored_sets: Collection[str] = ()) -> None:
        self.label = label
        self.ignored_sets = ignored_sets
        self.rows: list[ModelRow] = []

    @collective_hook
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the transfer before fine-tuning."""
        injection = next(iter(callbacks_of(trainer, MaskedTaskVectorInjection)), None)
        if not self.rows and injection is not None and injection.prepared is not None:
            with isolate_rng():
                self._evaluate_transfer(injection.prepared, require_language_model(pl_module), trainer)

    @collective_hook
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the result."""
        transfer = next((row for row in self.rows if row.model == self.label), None)
        label = FINE_TUNING_ALONE if transfer is None else f"{self.label} + fine-tuning"
        with back_on_device(trainer):
            model = require_language_model(pl_module)
            self._evaluate(label, model, None if transfer is None else transfer.share, trainer)

    def _evaluate_transfer(self, prepared: PreparedTransfer, model: PreTrainedModel, trainer: L.Trainer) -> None:
        union = torch.stack([source.mask for source in prepared.sources]).any(0)
        _, types = count_by_type(prepared.inventory, union)
        self._evaluate(self.label, model, prepared.parameter_share, trainer, types)

    def _evaluate(
        self,
        label: str,
        model: PreTrainedModel,
        share: float | None,
        trainer: L.Trainer,
        module_types: Mapping[str, int] | None = None,
    ) -> None:
        sets = [name for name in _evaluation_data(trainer).evaluations if name not in self.ignored_sets]
        self.rows.append(ModelRow(label, share, _score(label, model, trainer, sets), module_types or {}))

    def state_dict(self) -> dict[str, Any]:
        """The rows of the models evaluated so far, for checkpoints."""
        return {"rows": [row.to_json() for row in self.rows]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the table of the run that is resumed."""
        self.rows = [ModelRow.from_json(row) for row in state_dict["rows"]]


class TransferComparison(RootWriter, FitEvaluation):
    """Evaluate target, sources, transfer and fine-tuned result, next to task arithmetic, random channels and others.

    The controls move all channels, and random channels of as many parameters as the transfer moved, from the same
    sources at the same λ. An item whose answer is one exact string counts when greedy decoding would give it and end
    the turn, which one teacher-forced pass decides; answers of other kinds are generated and graded. Every model is
    compared with the target on the same items (McNemar's exact test). The table is printed when fitting ends and
    written to ``<default_root_dir>/evaluations/comparison.json`` and ``.csv``.

    Args:
        label: The name of the run's own transfer in the table.
        fine_tuning_alone: Whether to fit once more without a transfer.
        selections: Other transfers of the same sources, by their names in the table; each is fitted, too, in
            ``<default_root_dir>/comparison/<name>``. These fits follow the run's own, one after the other, and are made
            by ``python -m act_lightning fit``.
        scales: λ to choose from for task arithmetic: the one that recovers most among those that keep. By default
            that of the transfer.
        keep_within: How far, in points, the mean of the sets to keep may fall below the target's there.
        validation_sets: The evaluation sets on which λ is chosen, which the table leaves out; by default λ is chosen on
            the items of the table, in favor of task arithmetic.

    Attributes:
        rows: The models that were evaluated so far.
    """

    def __init__(
        self,
        label: str = "transfer",
        fine_tuning_alone: bool = False,
        selections: dict[str, TransferSettings] | None = None,
        scales: Sequence[float] = (),
        keep_within: float = 1.0,
        validation_sets: Sequence[str] = (),
    ) -> None:
        super().__init__(label, validation_sets)
        self.fine_tuning_alone = fine_tuning_alone
        self.selections = selections or {}
        self.scales = scales
        self.keep_within = keep_within
        self.fits_again = False
        """Whether the program that made the Trainer also makes the fits of :attr:`other_fits`."""

    @property
    def other_fits(self) -> dict[str, TransferSettings | None]:
        """The fits that follow the run's own, by label, each with its transfer; ``None`` for fine-tuning alone."""
        alone: dict[str, TransferSettings | None] = {FINE_TUNING_ALONE: None} if self.fine_tuning_alone else {}
        return alone | self.selections

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a run without evaluation sets, and settings that don't fit it, before any work is done."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            data = _evaluation_data(trainer)
            raise_if_any(self._issues(data) + sandbox_issues(data.evaluations))

    def _issues(self, data: AbilityDataModule) -> list[ConfigIssue]:
        name, sets = type(self).__name__, data.evaluations
        issues = [
            ConfigIssue(f"{name}.validation_sets", each, "must name a set of data.evaluations", f"Choose of {[*sets]}.")
            for each in self.ignored_sets
            if each not in sets
        ]
        roles = Counter(settings.role for each, settings in sets.items() if each not in self.ignored_sets)
        if self.ignored_sets and not roles:
            problem, hint = "must leave sets for the table", "Add others to data.evaluations."
            issues.append(ConfigIssue(f"{name}.validation_sets", [*self.ignored_sets], problem, hint))
        for label, settings in self.selections.items():
            issues += settings.issues(f"{name}.selections.{label}")
        if len({file_name(label).lower() for label in self.other_fits}) < len(self.other_fits):
            problem, hint = "must have names that differ in letters or digits", "Rename one."
            issues.append(ConfigIssue(f"{name}.selections", [*self.selections], problem, hint))
        if self.label in self.other_fits:
            problem, hint = "must differ from the label of the run's own transfer", "Rename one."
            issues.append(ConfigIssue(f"{name}.label", self.label, problem, hint))
        for scale in self.scales:
            issues += scale_issues(scale, f"{name}.scales")
        if self.other_fits and not self.fits_again:
            problem = "must be left out where the Trainer is your own, which makes one fit"
            hint = "Use python -m act_lightning fit, or make one fit each."
            issues.append(ConfigIssue(f"{name}.selections, fine_tuning_alone", [*self.other_fits], problem, hint))
        return issues

    @collective_hook
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the transfer before fine-tuning, and every model that it is compared with."""
        if self.rows:
            return  # restored from a checkpoint
        injection = next(iter(callbacks_of(trainer, MaskedTaskVectorInjection)), None)
        profiler = next(iter(callbacks_of(trainer, ActivationDifferenceProfiler)), None)
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
                sources = profiler.sources or []
                self._evaluate_task_arithmetic(trainer, target, sources, injection.settings, prepared, dtype)
                control = random_channels(sources, prepared, injection.settings)
                model_of_control = merged_model(trainer, target, control, dtype)
                self._evaluate("random channels", model_of_control, control.parameter_share, trainer)
            self._evaluate_transfer(prepared, model, trainer)

    def _evaluate_task_arithmetic(
        self,
        trainer: L.Trainer,
        target: Path,
        sources: Sequence[AbilitySource],
        settings: TransferSettings,
        prepared: PreparedTransfer,
        dtype: torch.dtype,
    ) -> None:
        """Evaluate task arithmetic, with several λ at the one that recovers most among those that keep."""
        if not self.scales:
            control = task_arithmetic(sources, prepared, settings)
            model = merged_model(trainer, target, control, dtype)
            self._evaluate("task arithmetic", model, control.parameter_share, trainer)
            return
        evaluations = _evaluation_data(trainer).evaluations
        chosen_on = self.ignored_sets or [*evaluations]
        by_role = {role: [name for name in chosen_on if evaluations[name].role == role] for role in ROLES}
        original = load_like_trained(trainer, target, dtype)
        controls: dict[float, PreparedTransfer] = {}
        scores: dict[float | None, ItemScores] = {None: _score("target", original, trainer, chosen_on)}
        for scale in self.scales:
            at_scale = [replace(source, scale=scale) for source in sources]
            controls[scale] = task_arithmetic(at_scale, prepared, settings)
            model = merged_model(trainer, target, controls[scale], dtype)
            scores[scale] = _score(f"task arithmetic, λ {scale:g}", model, trainer, chosen_on)

        def mean(scale: float | None, role: str) -> float:
            return scores[scale].mean(by_role[role])[0] if by_role[role] else 0.0

        least = mean(None, "keep") - self.keep_within / 100 - 1e-9
        keeping = [scale for scale in controls if mean(scale, "keep") >= least]
        best = max(keeping, key=lambda scale: mean(scale, "recover")) if keeping else min(controls, key=abs)
        label = f"task arithmetic, λ {best:g}" + ("" if keeping else " (none keeps)")
        self._evaluate(label, merged_model(trainer, target, controls[best], dtype), 1.0, trainer)

    @collective_hook
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the result, and unless other fits follow, print the table and write it."""
        super().on_fit_end(trainer, pl_module)
        if not self.other_fits:
            self.publish(trainer)

    def publish(self, trainer: L.Trainer) -> None:
        """Print the table and what it says, and write the table."""
        if not trainer.is_global_zero:
            return
        evaluations = _evaluation_data(trainer).evaluations
        roles = {name: settings.role for name, settings in evaluations.items() if name not in self.ignored_sets}
        self.rows.sort(key=_row_kind)
        folder = Path(trainer.default_root_dir) / "evaluations"
        write_file(folder / "comparison.json", json.dumps([row.to_json() for row in self.rows], indent=2) + "\n")
        write_file(folder / "comparison.csv", models_csv(self.rows, roles))
        console = Console()
        console.print(models_table(self.rows, roles))
        for line in comparison_findings(self.rows, roles):
            console.print(line)
        print(f"comparison written to {folder / 'comparison.csv'}")


def _row_kind(row: ModelRow) -> int:
    """Where a row stands in the table: the models that were given, fine-tuning alone, controls, transfers."""
    prefixes = ("target", "source ", FINE_TUNING_ALONE, "task arithmetic", "random channels", "")
    return next(index for index, prefix in enumerate(prefixes) if row.model.startswith(prefix))


def _score(label: str, model: PreTrainedModel, trainer: L.Trainer, sets: Collection[str]) -> ItemScores:
    data, rank, world_size = _evaluation_data(trainer), trainer.global_rank, trainer.world_size
    items = sum(len(data.prompts[name]) for name in sets)
    title, is_quiet = f"evaluating {label}", not trainer.is_global_zero
    with progress_bar(desc=title, total=items, leave=False, disable=is_quiet) as bar:

        def score() -> ItemScores:
            def update(scored: int) -> None:
                bar.update(scored * world_size)

            return score_model(data, model, _TOKENS_PER_BATCH, rank, world_size, update, sets)

        return run_in_strategy(trainer, score)


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
