"""Profile a pair on so many processes, under a limit of memory: ROOT PLACEMENT LIMIT PROCESSES SELECTION."""

import resource
import sys
from pathlib import Path

import lightning as L

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler
from act_lightning.transfer.settings import TransferSettings
from tests.loops import padded, quiet_trainer, random_samples


class Late(L.LightningModule):
    pass


if __name__ == "__main__":
    root, placement, limit, processes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    settings = TransferSettings(selection=sys.argv[5])
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    source = AbilitySource(str(root / "source"), {"a": padded(random_samples(12), rows=2)}, name="s")
    out = root / f"{placement}-{processes}"
    profiler = ActivationDifferenceProfiler([source], 32, str(root / "target"), placement=placement)
    several = {"devices": processes, "strategy": "ddp"} if processes > 1 else {}
    trainer = quiet_trainer(out, **several)

    def work():
        trainer.strategy.setup_environment()
        profiler.profile(trainer, Late(), settings=settings)

    trainer.strategy.launcher.launch(work, trainer=trainer) if trainer.strategy.launcher else work()
