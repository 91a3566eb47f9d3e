"""The sections of a run before anything is loaded, and what the headers of its models say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from act_lightning.analysis.causes_settings import CausesSettings
from act_lightning.callbacks.injection import MaskedTaskVectorInjection
from act_lightning.callbacks.profiler import ActivationDifferenceProfiler
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints.compatibility import sibling_issues
from act_lightning.checkpoints.models import load_config, locate, meta_model
from act_lightning.checkpoints.weight_files import is_weightless, require_weights
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.module import AbilityTransferModule
from act_lightning.sweep.settings import SweepSettings
from act_lightning.transfer.sources import AbilitySource


@dataclass(frozen=True)
class Run:
    """What a config says.

    Attributes:
        model: Section ``model``.
        data: Section ``data``.
        profiler: Section ``profile``.
        transfer: Section ``transfer``.
        trainer: Section ``trainer``, as it was given.
        seed: ``seed_everything``, as it was given.
        checkpoint: Lightning's checkpoint that the run starts from, if any; a fit then transfers nothing.
        sweep: Section ``sweep``, where the verb has one.
        causes: Section ``causes``, where the verb has one.
    """

    model: AbilityTransferModule
    data: AbilityDataModule
    profiler: ActivationDifferenceProfiler
    transfer: MaskedTaskVectorInjection
    trainer: Mapping[str, Any]
    seed: bool | int = True
    checkpoint: str | None = None
    sweep: SweepSettings | None = None
    causes: CausesSettings | None = None

    @property
    def sources(self) -> list[AbilitySource]:
        """The ability models; none for plain fine-tuning."""
        return self.profiler.sources or []

    @property
    def root(self) -> Path:
        """Where the run writes: what Lightning makes of ``trainer.default_root_dir``."""
        return Path(self.trainer.get("default_root_dir") or ".").expanduser()


_Result = TypeVar("_Result")


@dataclass
class Models:
    """The models of a run, as far as they can be found.

    Attributes:
        target: Folder of the target, unless something is wrong with it.
        sources: Folder of each sibling of the target, by its number.
        channels: The target's channels.
        issues: What is wrong with any of them.
    """

    target: Path | None = None
    sources: dict[int, Path] = field(default_factory=dict)
    channels: ChannelInventory | None = None
    issues: list[ConfigIssue] = field(default_factory=list)

    def attempt(self, work: Callable[[], _Result]) -> _Result | None:
        """The result of ``work``; or ``None``, and its issues among those of the models."""
        try:
            return work()
        except ActError as error:
            self.issues += [issue for issue in error.issues if issue not in self.issues]
            return None


def inspect_models(run: Run, compare: bool = True, weights: bool = False) -> Models:
    """Find the models of a run and compare their configs and headers.

    Args:
        run: The run.
        compare: Whether the sources are looked at too.
        weights: Whether folders without weights are an error. Those of the hub are fetched later.
    """
    models = Models()
    models.target = _find(models, run.model.target, run.model.revision, "model.target", weights)
    sources = run.sources if compare else []
    for i, source in enumerate(sources):
        setting = f"profile.sources[{i}].model"
        if folder := _find(models, source.model, source.revision, setting, weights):
            models.sources[i] = folder
    if (target := models.target) is None:
        return models
    if sources:
        models.channels = models.attempt(lambda: inventory(meta_model(target)))
    for i, folder in list(models.sources.items()):
        issues = models.attempt(partial(sibling_issues, target, folder, f"profile.sources[{i}].model"))
        models.issues += issues or []
        if issues is None or issues:
            del models.sources[i]
    return models


def _find(models: Models, name: str, revision: str | None, setting: str, weights: bool) -> Path | None:
    """The folder, unless something is wrong with it or its weights."""
    before = len(models.issues)
    folder = models.attempt(lambda: locate(name, revision, setting, weights=False))
    if folder is None:
        return None
    models.attempt(lambda: load_config(folder))
    if not is_weightless(folder) or (weights and Path(name).expanduser().is_dir()):
        models.attempt(lambda: require_weights(folder, setting))
    return folder if len(models.issues) == before else None
