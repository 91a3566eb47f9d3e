"""Which model of a fit to keep: the best recover among those whose keep stays close to the untouched target's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from act_lightning.architecture import evaluating, require_language_model
from act_lightning.callbacks.export import HuggingFaceExport
from act_lightning.callbacks.injection import MaskedTaskVectorInjection
from act_lightning.callbacks.root_writer import RootWriter
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.defaults import BEST
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.profiling.channel_means import float64_device
from act_lightning.training.lightning_compat import callbacks_of, isolate_rng, resumes_from_checkpoint
from act_lightning.training.loss import score_answers
from act_lightning.training.sharding import run_in_strategy
from act_lightning.training.together import collective_hook
from act_lightning.training.validation import KEEP_ACCURACY, WITHIN_KEEP, Validation, validation_roles
from act_lightning.transfer.preparation import previous_transfer

_POINTS = 100


class BestRecovery(RootWriter):
    """Export to ``<default_root_dir>/best`` whenever a validation finds a better model.

    When fitting starts, before anything is transferred, the target's token accuracy on the validation sets with role
    ``keep`` is measured. From then on every validation logs ``val_recover_within_keep``: the accuracy on the sets with
    role ``recover`` where that on ``keep`` is at most ``keep_within`` points below the target's, and else how far it is
    below that, as a negative number. So higher is better, and ``ModelCheckpoint`` and ``EarlyStopping`` can monitor it.

    Args:
        keep_within: Points (of 100) that keep may lose.

    Attributes:
        baseline: The target's accuracy on ``keep``, once measured.
        best: The highest value so far.
    """

    def __init__(self, keep_within: float = 1.0) -> None:
        self.keep_within = keep_within
        self.baseline: float | None = None
        self.best: float | None = None
        self._default_export = HuggingFaceExport()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work before any work is done."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        issues = []
        if not 0 <= self.keep_within <= _POINTS:
            problem, hint = f"must lie in [0, {_POINTS}]", "Write points of accuracy, such as 1.0."
            issues.append(ConfigIssue("keep_within", self.keep_within, problem, hint))
        data = _data_module(trainer)
        roles = set(validation_roles(data).values())
        if missing := [role for role in ("keep", "recover") if role not in roles]:
            problem = f"must hold a set with role {' and one with role '.join(missing)} for BestRecovery"
            hint = "Name such abilities in data.validation, and give them their role."
            issues.append(ConfigIssue("data.validation", data.validation_names, problem, hint))
        callbacks = callbacks_of(trainer, L.Callback)
        before = callbacks[: callbacks.index(self)]
        if any(isinstance(callback, MaskedTaskVectorInjection) for callback in before):
            problem = "must stand before MaskedTaskVectorInjection, to measure the target untouched"
            issues.append(ConfigIssue("callbacks", "BestRecovery", problem, "Put it first in the Trainer's callbacks."))
        raise_if_any(issues)
        self._export(trainer).require_output(Path(trainer.default_root_dir) / BEST, trainer, pl_module)

    def _export(self, trainer: L.Trainer) -> HuggingFaceExport:
        """The Trainer's own export, or one with its defaults."""
        return next(iter(callbacks_of(trainer, HuggingFaceExport)), self._default_export)

    @collective_hook
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the target, unless the fit resumes from a checkpoint, which holds the measured value."""
        if self.baseline is not None or resumes_from_checkpoint(trainer):
            return
        if previous_transfer(require_language_model(pl_module)):
            problem = "must see the model before abilities are transferred to it"
            raise ActError(ConfigIssue("callbacks", "BestRecovery", problem, "Begin with the target itself."))
        self.baseline = self._measure_keep(trainer, pl_module)
        rank_zero_info(f"keep: token accuracy of the target is {self.baseline:.2%}, {self.keep_within:g} points may go")

    def _measure_keep(self, trainer: L.Trainer, pl_module: L.LightningModule) -> float:
        data, model = _data_module(trainer), require_language_model(pl_module)
        roles = validation_roles(data)
        keep_sets = [name for name, role in roles.items() if role == "keep"]
        loaders = dict(zip(roles, data.val_dataloader(), strict=True))
        validation = Validation(dict.fromkeys(keep_sets, "keep"), float64_device(pl_module.device))
        with isolate_rng(), evaluating(model):
            for index, name in enumerate(keep_sets):
                for batch in loaders[name]:
                    on_device = trainer.strategy.batch_to_device(batch)
                    scores = run_in_strategy(trainer, partial(score_answers, model, on_device))
                    validation.metrics[index].update(scores)
        return float(validation.compute()[KEEP_ACCURACY])

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the accuracy that keep must reach; each time, because a checkpoint may have been loaded meanwhile."""
        if self.baseline is not None:
            module: Any = pl_module  # an AbilityTransferModule reads this attribute
            module.keep_floor = self.baseline - self.keep_within / _POINTS

    @collective_hook
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export a model that is better than all earlier ones."""
        if trainer.sanity_checking or WITHIN_KEEP not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[WITHIN_KEEP])
        if self.best is not None and value <= self.best:
            return
        self.best = value
        self._export(trainer).export(Path(trainer.default_root_dir) / BEST, trainer, pl_module)
        rank_zero_info(f"update {trainer.global_step}: {WITHIN_KEEP} {value:.4f}")

    def state_dict(self) -> dict[str, Any]:
        """The measured values, for checkpoints."""
        return {"baseline": self.baseline, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the values measured before the checkpoint was written."""
        self.baseline, self.best = state_dict["baseline"], state_dict["best"]


def _data_module(trainer: L.Trainer) -> AbilityDataModule:
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, AbilityDataModule):
        return data
    hint = "Give the Trainer one with validation sets whose abilities have roles."
    raise ActError(
        ConfigIssue("datamodule", type(data).__name__, "must be an AbilityDataModule for BestRecovery", hint)
    )
