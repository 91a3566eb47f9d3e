"""The models that a transfer is compared with: target, sources, and controls that move other channels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning as L
import torch
from rich.console import Console
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from act_lightning.architecture import require_language_model
from act_lightning.callbacks.injection import MaskedTaskVectorInjection
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.models import load_model
from act_lightning.data.batches import shard, token_budget_batches
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.evaluation.evaluator import GenerationScoring, TeacherForcedScoring
from act_lightning.evaluation.tables import Row, models_csv, models_table, row_of
from act_lightning.masks import eligible_channels
from act_lightning.profiling.target import named_folder
from act_lightning.training.lightning_compat import isolate_rng
from act_lightning.transfer.preparation import PreparedTransfer, prepare
from act_lightning.transfer.settings import TransferSettings
from act_lightning.transfer.sources import AbilitySource


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
    allowed = done.inventory.count_elements(eligible_channels(done.inventory, settings.exclude))
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


_TOKENS_PER_BATCH = 2048
_CONTROLS = {"task arithmetic": task_arithmetic, "random channels": random_channels}
_Callback = TypeVar("_Callback", bound=L.Callback)


class TransferComparison(L.Callback):
    """Evaluate target, sources, transfer and fine-tuned result, beside task arithmetic and random channels.

    The controls move all channels, and random channels of as many parameters as the transfer moved, from the same
    sources at the same λ. An item whose answer is one exact string counts when greedy decoding would give it and end
    the turn, which one teacher-forced pass decides; answers of other kinds are generated and judged. Every model is
    compared with the target on the same items (McNemar's exact test). The table is printed when fitting ends and
    written to ``<default_root_dir>/evaluations/comparison.json`` and ``.csv``.

    Attributes:
        rows: What was evaluated so far.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a run without evaluation sets before any work is done."""
        if stage == "fit":
            _data(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the transfer before fine-tuning, and everything that it is compared with."""
        if self.rows:
            return  # restored from a checkpoint
        injection = _find(trainer, MaskedTaskVectorInjection)
        profiler = _find(trainer, ActivationDifferenceProfiler)
        target = named_folder(pl_module, profiler.target if profiler else None, None)
        model = require_language_model(pl_module)
        with isolate_rng():
            if target is not None:
                self._evaluate_checkpoint("target", target, model, trainer)
            if injection is not None and injection.prepared is not None:
                self._evaluate_sources(injection.prepared, model, trainer)
                if target is not None and profiler is not None:
                    self._evaluate_controls(profiler, injection, target, model, trainer)
                self._evaluate("transfer", model, injection.prepared.parameter_share, trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the result, print the table and write it."""
        share = next((row.share for row in self.rows if row.model == "transfer"), None)
        name = "fine-tuning" if share is None else "transfer + fine-tuning"
        self._evaluate(name, require_language_model(pl_module), share, trainer)
        if trainer.is_global_zero:
            roles = {name: one.role for name, one in _data(trainer).evaluations.items()}
            folder = Path(trainer.default_root_dir) / "evaluations"
            write_file(folder / "comparison.json", json.dumps([asdict(row) for row in self.rows], indent=2) + "\n")
            write_file(folder / "comparison.csv", models_csv(self.rows, roles))
            Console().print(models_table(self.rows, roles))

    def _evaluate_sources(self, done: PreparedTransfer, like: PreTrainedModel, trainer: L.Trainer) -> None:
        for source in done.sources:
            self._evaluate_checkpoint(f"source {source.name}", source.folder, like, trainer)

    def _evaluate_controls(
        self,
        profiler: ActivationDifferenceProfiler,
        injection: MaskedTaskVectorInjection,
        target: Path,
        like: PreTrainedModel,
        trainer: L.Trainer,
    ) -> None:
        assert injection.prepared is not None
        for name, make in _CONTROLS.items():
            control = make(profiler.sources or [], injection.prepared, injection.settings)
            model = merged_model(target, control, like.dtype, like.device)
            self._evaluate(name, model, control.parameter_share, trainer)

    def _evaluate_checkpoint(self, name: str, folder: Path, like: PreTrainedModel, trainer: L.Trainer) -> None:
        self._evaluate(name, load_model(folder, like.dtype, like.device), None, trainer)

    def _evaluate(self, name: str, model: PreTrainedModel, share: float | None, trainer: L.Trainer) -> None:
        data = _data(trainer)
        items = sum(map(len, data.prompts.values()))
        with tqdm(desc=f"evaluating {name}", total=items, disable=not trainer.is_global_zero) as bar:
            right = {evaluation: _right(model, data, evaluation, trainer, bar) for evaluation in data.evaluation_names}
        self.rows.append(row_of(name, share, right))

    def state_dict(self) -> dict[str, Any]:
        """What was evaluated so far, for checkpoints."""
        return {"rows": [asdict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the table of the run that is resumed."""
        self.rows = [Row(**row) for row in state_dict["rows"]]


def _right(
    model: PreTrainedModel, data: AbilityDataModule, name: str, trainer: L.Trainer, bar: tqdm[Any]
) -> list[bool]:
    """Which items of a set the model answers rightly, found by all processes together."""
    answering = (
        TeacherForcedScoring(data, name) if data.evaluations[name].kind == "exact" else GenerationScoring(data, name)
    )
    batches = token_budget_batches(answering.lengths, _TOKENS_PER_BATCH)
    right = torch.zeros(len(answering.lengths), dtype=torch.int64, device=model.device)
    for rows in shard(batches, trainer.global_rank, trainer.world_size):
        right[rows] = torch.as_tensor(answering.right(model, rows), dtype=torch.int64, device=model.device)
        bar.update(len(rows) * trainer.world_size)
    return [bool(one) for one in cast(Tensor, trainer.strategy.reduce(right, reduce_op="sum")).tolist()]


def _data(trainer: L.Trainer) -> AbilityDataModule:
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, AbilityDataModule) and data.evaluations:
        return data
    problem = "must hold evaluation sets for TransferComparison"
    raise ActError(
        ConfigIssue("data.evaluations", {}, problem, "Add one, such as {gsm: {path: gsm.jsonl, role: keep}}.")
    )


def _find(trainer: L.Trainer, kind: type[_Callback]) -> _Callback | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
