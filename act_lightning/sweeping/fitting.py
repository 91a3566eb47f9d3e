"""Fine-tuning after a transfer: a `fit` of its own for every point, one after another, with all devices of the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from act_lightning.checkpoints import load_model, write_file
from act_lightning.data import AbilityDataModule
from act_lightning.errors import ActError, Fault
from act_lightning.sweeping.bench import Watch
from act_lightning.sweeping.outcome import Outcome
from act_lightning.sweeping.points import Point
from act_lightning.sweeping.questions import Questions
from act_lightning.sweeping.settings import TARGET

# What tells a process that it is one of several; a fit starts its own.
_OF_A_LAUNCH = (
    *("LOCAL_RANK", "RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
)


@dataclass(frozen=True)
class Fits:
    """Fine-tunes points and evaluates the results.

    Attributes:
        folder: Where each point has a folder.
        config: The config of a point's fit as YAML, for its folder.
        data: The data module, set up for testing.
        dtype: Precision in which models are evaluated.
        device: Where they are evaluated.
        keep_models: Whether models stay on the disk.
    """

    folder: Path
    config: Callable[[Point, Path], str]
    data: AbilityDataModule
    dtype: torch.dtype
    device: torch.device
    keep_models: bool

    def go(self, outcomes: Sequence[Outcome], record: Callable[[Outcome], None]) -> None:
        """Fine-tune after every transfer, and tell of each result.

        Args:
            outcomes: What was found without fine-tuning; that of the target itself stands for plain fine-tuning.
            record: Is told of each result when it is there.
        """
        questions = Questions(self.data)
        for before in tqdm(outcomes, desc="fine-tuning", unit="point"):
            record(self._fitted(before, questions))

    def _fitted(self, before: Outcome, questions: Questions) -> Outcome:
        point, watch = replace(before.point, tuned=True), Watch(self.device)
        folder = self.folder / point.name
        start = time.perf_counter()
        if not (folder / "model" / "config.json").is_file():
            self._fit(point, folder)
        watch.seconds["fitting"] = time.perf_counter() - start
        model = load_model(folder / "model", self.dtype, self.device)
        with watch.timing("evaluating"):
            right = questions.ask(model)
        if not self.keep_models:
            shutil.rmtree(folder / "model")
        return Outcome(point, before.roles, right, before.share, watch.seconds)

    def _fit(self, point: Point, folder: Path) -> None:
        """Run `fit` in a process of its own, whose memory is free again afterwards."""
        write_file(folder / "config.yaml", self.config(point, folder))
        environment = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCH}
        command = [sys.executable, "-m", "act_lightning", "fit", "--config", str(folder / "config.yaml")]
        log = folder / "fit.log"
        with log.open("w", encoding="utf-8") as said:
            done = subprocess.run(command, env=environment, stdout=said, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            what = "plain fine-tuning" if point.method == TARGET else point.name
            rule = f"must end in a model, and {what} did not ({lines[-1] if lines else 'no message'})"
            raise ActError(Fault("sweep.fit", True, rule, f"Read {log}, and start the sweep again: it continues."))
