"""Masked task-vector injection when fitting starts: the selected rows of the sources move into the model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from act_lightning.architecture import require_language_model
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.callbacks.root_writer import RootWriter
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.scores import scores_folder
from act_lightning.sections import TransferSection
from act_lightning.training.lightning_compat import callbacks_of, resumes_from_checkpoint
from act_lightning.training.sharding import Layout, start_averages_from, strategy_issues
from act_lightning.training.together import collective_hook
from act_lightning.transfer.injection import MaskedInjection, Rounding
from act_lightning.transfer.preparation import (
    PreparedTransfer,
    TransferPlan,
    mark_transferred,
    prepare,
    previous_transfer,
    resumed_issues,
)
from act_lightning.transfer.saved_fisher import FISHER_FOLDER
from act_lightning.transfer.settings import AbilitySource, TransferSettings
from act_lightning.transfer.summary import describe_transfer, mask_issues, rounding_issues, with_outcome


class MaskedTaskVectorInjection(TransferSection, RootWriter):
    """Move the selected channels of the profiler's sources into the model, once, when fitting starts.

    θ_i = θ_trg,i + Σ_m λ_m (θ_abl(m),i − θ_trg,i) · 1(i ∈ M(m))   (paper §4.3, https://arxiv.org/abs/2601.09398)

    Only selected rows are read from the sources. What moved is written to ``<default_root_dir>/transfer.json``.
    Neither a fit that resumes nor a second fit of the same model injects again.

    Args:
        ratio: p, the share that one ability's mask selects, in (0, 1].
        share: What ``ratio`` is a share of: ``channels`` or ``parameters``.
        scale: λ, the strength of the transfer.
        selection: How channels are ranked: name of a scorer (``activation`` is the paper's rule), ``random`` or
            ``all``; or a scorer with settings of its own.
        scope: ``global``: rank all channels together; ``module``: the same share in every module.
        include: fnmatch patterns on full names of the modules whose channels may be selected; others are not counted.
        exclude: The same for modules to leave out, also of those that ``include`` matches.
        method: Name of a merging method, or one with settings of its own.
        scores: Folder of saved scores, so that nothing is profiled.

    Attributes:
        prepared: What this run injected.
        record: What was injected, in this run or before the checkpoint that it resumes from, as in ``transfer.json``.
    """

    prepared: PreparedTransfer | None = None
    record: dict[str, Any] = {}  # noqa: RUF012  # replaced, never changed

    @classmethod
    def of(cls, settings: TransferSettings) -> MaskedTaskVectorInjection:
        """The injection with these settings."""
        return cls(**{each.name: getattr(settings, each.name) for each in fields(settings)})

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse invalid settings and strategies before any work is done."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and _find_profiler(trainer).sources is not None:
            raise_if_any(self.issues() + strategy_issues(trainer))

    @collective_hook
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Inject into a fit that starts from the beginning, and write what moved, now or before."""
        profiler = _find_profiler(trainer)
        if profiler.sources is None:
            return
        model = require_language_model(pl_module)
        if not resumes_from_checkpoint(trainer):
            if record := previous_transfer(model):
                self.record = record
            else:
                self.inject(trainer, model, profiler)
                start_averages_from(trainer, pl_module)
        self._write_record(trainer, model)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what moved before the checkpoint, which a strategy that shards restores after ``on_fit_start``.

        Raises:
            ActError: The settings of the transfer differ from those before the checkpoint.
        """
        if resumes_from_checkpoint(trainer):
            raise_if_any(resumed_issues(self.record, _find_profiler(trainer).sources or [], self.settings))
        if self.record and not previous_transfer(model := require_language_model(pl_module)):
            self._write_record(trainer, model)

    def _write_record(self, trainer: L.Trainer, model: PreTrainedModel) -> None:
        if not self.record:
            return
        mark_transferred(model, self.record)
        if trainer.is_global_zero:
            write_file(Path(trainer.default_root_dir) / "transfer.json", json.dumps(self.record, indent=2) + "\n")

    def plan(
        self,
        root: Path,
        sources: Sequence[AbilitySource],
        channels: ChannelInventory,
        target_digests: Sequence[str],
        target: Path | None,
    ) -> TransferPlan:
        """What this transfer is made from.

        Args:
            root: The run's folder, which holds scores and Fisher information unless ``scores`` names another folder.
            sources: The ability models.
            channels: Those of the target.
            target_digests: Digests under which the target's weights are known.
            target: The target's checkpoint, if there is one.
        """
        scorer = self.settings.scorer
        scores = Path(self.scores) if self.scores else None if scorer is None else scores_folder(root, scorer)
        fisher = root / FISHER_FOLDER
        return TransferPlan(self.settings, sources, channels, target_digests, run_seed(), target, scores, fisher)

    def inject(
        self, trainer: L.Trainer, model: PreTrainedModel, profiler: ActivationDifferenceProfiler
    ) -> PreparedTransfer:
        """Select channels and change their parameters in place, on every process alike.

        Raises:
            ActError: Scores are missing or belong to other weights, a mask selects nothing, no selected value differs
                from the target's, or a value is NaN. In the last case the model is partly changed and must not be used.
        """
        root, folder = Path(trainer.default_root_dir), profiler.target_folder
        channels = profiler.target_channels or inventory(model)
        plan = self.plan(root, profiler.sources or [], channels, profiler.target_digests, folder)
        prepared = prepare(plan)
        issues = mask_issues(plan, prepared)
        injection = apply_transfer(prepared, Layout(model, trainer.strategy.model), folder)
        rounding = _over_all_processes(injection, trainer)
        if not rounding.moved and any(source.scale for source in prepared.sources):
            names = [source.model for source in prepared.sources]
            problem = "must differ from the target in a selected value, and do not: nothing was transferred"
            raise ActError(ConfigIssue("profile.sources", names, problem, "Name a model that has the ability."))
        issues += rounding_issues(rounding)
        self.prepared, self.record = prepared, with_outcome(prepared.report, rounding, issues)
        mark_transferred(model, self.record)
        rank_zero_info("\n".join([describe_transfer(self.record), *(f"{issue.level}: {issue}" for issue in issues)]))
        return prepared

    def state_dict(self) -> dict[str, Any]:
        """What was injected, for checkpoints."""
        return {"record": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what was injected before the checkpoint was written."""
        self.record = dict(state_dict["record"])


def apply_transfer(prepared: PreparedTransfer, layout: Layout, target: Path | None) -> MaskedInjection:
    """Change the parameters of a model that holds the target's weights, on every process alike.

    Args:
        prepared: What is transferred.
        layout: How the model is spread over processes.
        target: The target's checkpoint, from which a process that holds part of a parameter reads other rows of it, for
            a method that needs them.

    Returns:
        The injection, with the counts of what this process changed.

    Raises:
        ActError: A value is NaN or infinite. The model is partly changed then and must not be used.
    """
    with ExitStack() as stack:
        injection = stack.enter_context(prepared.injection())
        reader = None if target is None else stack.enter_context(CheckpointReader(target))
        for name, part in layout.parts(injection.names):
            original = None if reader is None else partial(reader.rows, name)
            injection.apply_(name, part.values, part.first_row, original)
    return injection


def _over_all_processes(injection: MaskedInjection, trainer: L.Trainer) -> Rounding:
    """What rounding did to the whole model, of which each process has changed all, or its own rows."""
    counts = torch.tensor(injection.rounding, device=trainer.strategy.root_device)
    values, moved, unchanged = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
    copies = max(1, values // max(1, injection.value_count))
    return Rounding(values // copies, moved // copies, unchanged // copies)


def run_seed() -> int:
    """The seed that Lightning's ``seed_everything`` set, or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def _find_profiler(trainer: L.Trainer) -> ActivationDifferenceProfiler:
    """The first profiler of the Trainer, which names the sources.

    Raises:
        ActError: There is none.
    """
    for profiler in callbacks_of(trainer, ActivationDifferenceProfiler):
        return profiler
    problem = "needs an ActivationDifferenceProfiler in the same Trainer, which names the sources"
    hint = "Add the profiler to the Trainer's callbacks."
    raise ActError(ConfigIssue("callbacks", "MaskedTaskVectorInjection", problem, hint))
