"""Masked task-vector injection when fitting starts: the selected rows of the sources move into the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from act_lightning.architecture import is_transferred, mark_transferred, require_language_model, transfer_record
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.files import write_file
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.defaults import RATIO, SCALE
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.merging.method import MergingMethod
from act_lightning.scorers.activation import Activation
from act_lightning.scorers.scorer import Scorer
from act_lightning.scores import scores_folder
from act_lightning.training.lightning_compat import resumes_from_checkpoint
from act_lightning.training.sharding import Layout
from act_lightning.training.strategies import start_averages_from, strategy_issues
from act_lightning.transfer.importance import FOLDER
from act_lightning.transfer.preparation import PreparedTransfer, prepare
from act_lightning.transfer.report import describe_transfer, resumed_issues
from act_lightning.transfer.selection import selection_issues
from act_lightning.transfer.settings import Scope, Share, TransferSettings, weight_issues
from act_lightning.transfer.sources import AbilitySource, source_ratios, source_scales


class MaskedTaskVectorInjection(L.Callback):
    """Move the selected channels of the profiler's sources into the model, once, when fitting starts.

    θ_i = θ_trg,i + Σ_m λ_m (θ_abl(m),i − θ_trg,i) · 1(i ∈ M(m))   (paper §4.3, https://arxiv.org/abs/2601.09398)

    Only selected rows are read from the sources. What moved is written to ``<default_root_dir>/transfer.json``.
    Neither a fit that resumes nor a second fit of the same model injects again.

    Args:
        ratio: p, the share that one ability's mask selects, in (0, 1].
        share: What ``ratio`` is a share of: ``channels`` or ``parameters``.
        scale: λ, the strength of the transfer.
        selection: How channels are ranked: name of a scorer (``activation`` is the paper's), ``random`` or ``all``; or
            a scorer with settings of its own.
        scope: ``global``: rank all channels together; ``module``: the same share in every module.
        exclude: fnmatch patterns on full module names; excluded channels are not counted.
        method: Name of a merging method, or one with settings of its own.
        scores: Folder of saved scores, so that nothing is profiled.

    Attributes:
        prepared: What this run injected.
        record: What was injected, in this run or before the checkpoint that it resumes from, as in ``transfer.json``.
    """

    def __init__(
        self,
        ratio: float = RATIO,
        share: Share = "channels",
        scale: float = SCALE,
        selection: str | Scorer = "activation",
        scope: Scope = "global",
        exclude: Sequence[str] = (),
        method: str | MergingMethod = "task_arithmetic",
        scores: str | None = None,
    ) -> None:
        self.settings = TransferSettings(ratio, share, scale, selection, scope, tuple(exclude), method)
        self.scores = scores
        self.prepared: PreparedTransfer | None = None
        self.record: dict[str, Any] = {}

    @property
    def needs_profiling(self) -> bool:
        """Whether scores are needed and not given."""
        return self.settings.needs_scores and self.scores is None

    @property
    def needs_fisher(self) -> bool:
        """Whether Fisher information of target and sources is needed."""
        return self.settings.needs_fisher

    @property
    def needs_data(self) -> bool:
        """Whether the samples of the sources' abilities are needed."""
        measures = self.needs_profiling and self.scorer is not None and self.scorer.needs_samples
        return measures or self.needs_fisher

    @property
    def scorer(self) -> Scorer | None:
        """What channels are ranked by; ``None`` where no scores are needed."""
        return self.settings.scorer

    def scores_of(self, root: Path) -> Path:
        """The folder of the scores that channels are ranked by: the one named, or the run's own below ``root``."""
        return Path(self.scores) if self.scores else scores_folder(root, self.scorer or Activation())

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with the settings, without looking at a model."""
        found = self.settings.issues()
        if self.scores is not None and not Path(self.scores).is_dir():
            found.append(
                ConfigIssue("transfer.scores", self.scores, "must be a folder of scores", "Run `profile` first.")
            )
        return found

    def selection_issues(self, channels: ChannelInventory, sources: Sequence[AbilitySource]) -> list[ConfigIssue]:
        """What is wrong with the selection, now that the target's channels are known."""
        found = selection_issues(channels, self.settings, source_ratios(sources, self.settings.ratio))
        return found + ([] if self.settings.issues() else weight_issues(self.settings, source_scales(sources)))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work before any work is done."""
        if stage == "fit" and _sources_of(trainer) is not None:
            raise_if_any(self.issues() + strategy_issues(trainer))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Inject into a fit that starts from the beginning, and write down what moved, now or before."""
        profiler = _sources_of(trainer)
        if profiler is None:
            return
        model = require_language_model(pl_module)
        if not resumes_from_checkpoint(trainer):
            if is_transferred(model):
                self.record = transfer_record(model)
            else:
                self.inject(trainer, model, profiler)
                start_averages_from(trainer, pl_module)
        self._write_down(trainer, model)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write down what moved before the checkpoint, which a strategy that shards restores after ``on_fit_start``.

        Raises:
            ActError: If other settings of the transfer are given than before the checkpoint.
        """
        if resumes_from_checkpoint(trainer):
            profiler = _sources_of(trainer)
            raise_if_any(resumed_issues(self.record, (profiler and profiler.sources) or [], self.settings))
        if self.record and not is_transferred(model := require_language_model(pl_module)):
            self._write_down(trainer, model)

    def _write_down(self, trainer: L.Trainer, model: PreTrainedModel) -> None:
        if not self.record:
            return
        mark_transferred(model, self.record)
        if trainer.is_global_zero:
            write_file(Path(trainer.default_root_dir) / "transfer.json", json.dumps(self.record, indent=2) + "\n")

    def inject(
        self, trainer: L.Trainer, model: PreTrainedModel, profiler: ActivationDifferenceProfiler
    ) -> PreparedTransfer:
        """Select channels and change their parameters in place, on every process alike.

        Returns:
            What was transferred.

        Raises:
            ActError: If scores are missing or foreign, a mask selects nothing, or a value is NaN; in the last case
                the model is partly changed and must not be used.
        """
        root = Path(trainer.default_root_dir)
        known = profiler.target_digests, profiler.target_folder, root / FOLDER
        channels = profiler.channels(model)
        prepared = prepare(profiler.sources or [], channels, self.settings, self.scores_of(root), run_seed(), *known)
        with prepared.injection() as injection, _rows_of(profiler.target_folder) as read:
            for name, part in Layout(model, trainer.strategy.model).parts(injection.names):
                injection.apply_(name, part.values, part.first_row, read and partial(read, name))
        self.prepared, self.record = prepared, prepared.report
        mark_transferred(model, prepared.report)
        rank_zero_info(describe_transfer(prepared.report))
        return prepared

    def state_dict(self) -> dict[str, Any]:
        """What was injected, for checkpoints."""
        return {"record": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what was injected before the checkpoint was written."""
        self.record = dict(state_dict["record"])


def run_seed() -> int:
    """The seed that Lightning's ``seed_everything`` set, or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


@contextmanager
def _rows_of(folder: Path | None) -> Iterator[Callable[[str, Tensor], Tensor] | None]:
    """Reads rows of the target's parameters, for processes that hold a part of them; ``None`` without a checkpoint."""
    if folder is None:
        yield None
    else:
        with CheckpointReader(folder) as reader:
            yield reader.rows


def _sources_of(trainer: L.Trainer) -> ActivationDifferenceProfiler | None:
    """The profiler that names the sources, or ``None`` for plain fine-tuning.

    Raises:
        ActError: If the trainer has no profiler.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ActivationDifferenceProfiler):
            return callback if callback.sources is not None else None
    problem = "must stand beside an ActivationDifferenceProfiler, which names the sources"
    raise ActError(
        ConfigIssue("callbacks", "MaskedTaskVectorInjection", problem, "Add the profiler to the Trainer's callbacks.")
    )
