"""A fit of a module that was validated before, by one Trainer, as torchrun starts it: ROOT TARGET SOURCE DATA."""

import os
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy

from act_lightning.callbacks import (
    AbilitySource,
    ActivationDifferenceProfiler,
    BestRecovery,
    HuggingFaceExport,
    MaskedTaskVectorInjection,
)
from act_lightning.data.ability_data import AbilityData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.module import AbilityTransferModule
from tests.loops import quiet_trainer

_FITS = {"trained": ("32-true", 1e-3), "injected": ("bf16-mixed", 1e-30)}  # so low a rate changes no weight


def fit_both(root: Path, target: str, source: str, data: str) -> None:
    """A fit in float32, and one in mixed precision that leaves weights as the transfer has made them."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for name, (precision, rate) in _FITS.items():
        settings: dict[str, Any] = {"precision": precision, "accumulate_grad_batches": 12 // processes}
        if processes > 1:
            strategy = ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1)
            settings |= {"devices": processes, "strategy": strategy}
        callbacks = [
            BestRecovery(keep_within=100),
            ActivationDifferenceProfiler([AbilitySource(source, ["d"], name="s")]),
            MaskedTaskVectorInjection(ratio=0.1),
            HuggingFaceExport(),
        ]
        trainer = quiet_trainer(root / name, *callbacks, num_sanity_val_steps=0, **settings)
        abilities = {"d": AbilityData(path=data, role="keep"), "r": AbilityData(path=data, role="recover")}
        samples = AbilityDataModule(abilities, train=["d"], validation=["d", "r"], target=target)
        module = AbilityTransferModule(target, learning_rate=rate)
        trainer.validate(module, samples, verbose=False)
        trainer.fit(module, samples)


if __name__ == "__main__":
    fit_both(Path(sys.argv[1]), *sys.argv[2:5])
