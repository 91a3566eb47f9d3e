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
from act_lightning.checkpoints.weight_files import is_weightless, read_headers
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.module import AbilityTransferModule
from act_lightning.sweep.sweep_settings import SweepSettings
from act_lightning.transfer.settings import AbilitySource


@dataclass(frozen=True)
class Run:
    """The sections of a config.

    Attributes:
        model: Section ``model``.
        data: Section ``data``.
        profiler: Section ``profile``.
        transfer: Section ``transfer``.
        trainer: Section ``trainer``, as written in the config.
        seed: ``seed_everything``, as written in the config.
        checkpoint: Lightning's checkpoint that the run starts from, if any; a fit then transfers nothing.
        sweep: Section ``sweep``, if the verb has one.
        causes: Section ``causes``, if the verb has one.
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
        """The folder that the run writes to: Lightning's reading of ``trainer.default_root_dir``."""
        return Path(self.trainer.get("default_root_dir") or ".").expanduser()


def strategy_of(trainer: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The strategy's class name in lower case, without its package, and its arguments.

    >>> strategy_of({"strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy", "init_args": {}}})
    ('fsdpstrategy', {})
    """
    strategy = trainer.get("strategy") or "auto"
    if isinstance(strategy, Mapping):
        return str(strategy.get("class_path")).rpartition(".")[2].lower(), strategy.get("init_args") or {}
    return str(strategy).lower(), {}


def process_count(trainer: Mapping[str, Any]) -> int | None:
    """How many processes a config asks for, or ``None`` if Lightning counts the devices at start.

    >>> process_count({"devices": 8, "num_nodes": 2}), process_count({"devices": "0,1"}), process_count({})
    (16, 2, None)
    """
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes") or 1
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    elif isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        devices = len(devices)
    if isinstance(devices, int) and devices > 0:
        return int(devices * nodes)
    return int(nodes) if trainer.get("accelerator") == "cpu" else None


_Result = TypeVar("_Result")


@dataclass
class Models:
    """The models of a run, as far as they can be found.

    Attributes:
        target: Folder of the target, unless something is wrong with it.
        sources: Folders of the sources that fit the target, by their index in ``profile.sources``.
        channels: The target's channels.
        issues: What is wrong with any of them.
    """

    target: Path | None = None
    sources: dict[int, Path] = field(default_factory=dict)
    channels: ChannelInventory | None = None
    issues: list[ConfigIssue] = field(default_factory=list)

    def attempt(self, work: Callable[[], _Result]) -> _Result | None:
        """The result of ``work``; or ``None``, with the issues that it raised added to ``issues``."""
        try:
            return work()
        except ActError as error:
            self.issues += [issue for issue in error.issues if issue not in self.issues]
            return None

    def find(self, name: str, revision: str | None, setting: str, weights: bool) -> Path | None:
        """The model's folder, unless something is wrong with its config or weights."""
        issue_count = len(self.issues)
        folder = self.attempt(lambda: locate(name, revision, setting, weights=False))
        if folder is None:
            return None
        self.attempt(lambda: load_config(folder))
        if not is_weightless(folder) or (weights and Path(name).expanduser().is_dir()):
            self.attempt(lambda: read_headers(folder, setting))
        return folder if len(self.issues) == issue_count else None


def inspect_models(run: Run, compare: bool = True, weights: bool = False) -> Models:
    """Find the models of a run and compare their configs and headers.

    Args:
        run: Its sources and target are inspected.
        compare: Whether to inspect the sources, too.
        weights: Whether a folder without weights is an error. Weights on the hub are fetched later.
    """
    models = Models()
    models.target = target = models.find(run.model.target, run.model.revision, "model.target", weights)
    sources = run.sources if compare else []
    for i, source in enumerate(sources):
        if folder := models.find(source.model, source.revision, f"profile.sources[{i}].model", weights):
            models.sources[i] = folder
    if target is None:
        return models
    if sources:
        models.channels = models.attempt(lambda: inventory(meta_model(target)))
    for i, folder in list(models.sources.items()):
        issues = models.attempt(partial(sibling_issues, target, folder, f"profile.sources[{i}].model"))
        models.issues += issues or []
        if issues is None or issues:
            del models.sources[i]
    return models
