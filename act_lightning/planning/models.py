"""What the configs and headers of a run's models tell, without any weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints import is_weightless, load_config, locate, meta_model, require_weights, sibling_faults
from act_lightning.errors import ActError, Fault
from act_lightning.planning.run import Run

_Result = TypeVar("_Result")


@dataclass
class Models:
    """The models of a run, as far as they can be found.

    Attributes:
        target: Folder of the target, unless something is wrong with it.
        sources: Folder of each sibling of the target, by its number.
        channels: The target's channels.
        faults: What is wrong with any of them.
    """

    target: Path | None = None
    sources: dict[int, Path] = field(default_factory=dict)
    channels: ChannelInventory | None = None
    faults: list[Fault] = field(default_factory=list)

    def attempt(self, work: Callable[[], _Result]) -> _Result | None:
        """The result of ``work``; or ``None``, and its faults among those of the models."""
        try:
            return work()
        except ActError as error:
            self.faults += [fault for fault in error.faults if fault not in self.faults]
            return None


def look(run: Run, compare: bool = True, weights: bool = False) -> Models:
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
        faults = models.attempt(partial(sibling_faults, target, folder, f"profile.sources[{i}].model"))
        models.faults += faults or []
        if faults is None or faults:
            del models.sources[i]
    return models


def _find(models: Models, name: str, revision: str | None, setting: str, weights: bool) -> Path | None:
    """The folder, unless something is wrong with it or its weights."""
    before = len(models.faults)
    folder = models.attempt(lambda: locate(name, revision, setting, weights=False))
    if folder is None:
        return None
    models.attempt(lambda: load_config(folder))
    if not is_weightless(folder) or (weights and Path(name).expanduser().is_dir()):
        models.attempt(lambda: require_weights(folder, setting))
    return folder if len(models.faults) == before else None
