"""Progress of a Trainer's loops on standard error: a bar in a terminal; in a log, a line every ten seconds."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from act_lightning.console import SHORT_BAR, Progress, progress_bar

_NOT_SHOWN = ("v_num", "answer_tokens")


class LoopProgress(TQDMProgressBar):
    """Lightning's bar, but on standard error, which leaves standard output to results, and as lines in a log."""

    def __init__(self) -> None:
        super().__init__(leave=True)  # a bar for every epoch

    def on_train_start(self, *_: Any) -> None:
        """Open no bar yet: what other callbacks do before the first epoch has bars of its own."""

    def on_train_end(self, *_: Any) -> None:
        """Close the last bar, if there was an epoch."""
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What is logged for the bar and fits into it."""
        metrics = super().get_metrics(trainer, pl_module).items()
        return {name: value for name, value in metrics if name not in _NOT_SHOWN}

    def _open(self, title: str, position: int = 0, leave: bool = True) -> Progress:
        options = {"desc": title, "position": position, "leave": leave, "dynamic_ncols": True, "bar_format": SHORT_BAR}
        return progress_bar(disable=self.is_disabled, **options)

    def init_train_tqdm(self) -> Progress:
        """The bar of an epoch."""
        return self._open(self.train_description)

    def init_validation_tqdm(self) -> Progress:
        """The bar of validation, below that of the epoch in a fit."""
        fits = self.trainer.state.fn != "validate"
        return self._open(self.validation_description, int(fits), not fits)

    def init_sanity_tqdm(self) -> Progress:
        """The bar of validation before the first epoch."""
        return self._open(self.sanity_check_description, leave=False)

    def init_test_tqdm(self) -> Progress:
        """The bar of testing."""
        return self._open(self.test_description)

    def init_predict_tqdm(self) -> Progress:
        """The bar of prediction."""
        return self._open(self.predict_description)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar before the results are printed."""
        self.test_progress_bar.close()
