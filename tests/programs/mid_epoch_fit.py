"""A fit that goes on, or writes a checkpoint in mid-epoch: TARGET FILE PROCESSES AFTER [CHECKPOINT]."""

import sys
from pathlib import Path

from safetensors.torch import save_file

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.module import AbilityTransferModule
from tests.loops import quiet_trainer
from tests.training.test_mid_epoch import Saver

if __name__ == "__main__":
    target, file, processes, after, path = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
    root = Path(file).parent
    data = AbilityDataModule({"d": AbilityData(file)}, batch_size=2, target=target)
    module = AbilityTransferModule(target, learning_rate=1.0e-3)
    strategy = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    accumulate = {"accumulate_grad_batches": 4 // processes, "max_epochs": 2, "limit_val_batches": 0}
    saver = Saver(after)
    trainer = quiet_trainer(root, saver, **strategy, **accumulate)
    trainer.fit(module, data, ckpt_path=path[0] if path else None)
    if trainer.is_global_zero and path:
        save_file(module.state_dict(), root / "weights.safetensors")
