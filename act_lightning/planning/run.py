"""The sections of a run, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.callbacks.causes_settings import CausesSettings
from act_lightning.data import AbilityDataModule
from act_lightning.module import AbilityTransferModule
from act_lightning.sweeping import SweepSettings


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
