"""When a run's config is saved beside its logs."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback


class SaveConfigLate(SaveConfigCallback):
    """Saves the config beside the logs; in a fit when training starts, so that a run that is refused leaves nothing."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save before validation, testing and prediction."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save before training."""
        super().setup(trainer, pl_module, "fit")
