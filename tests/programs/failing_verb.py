"""A verb that fails at a chosen point on one process: ``failing_verb.py POINT RANK MARK VERB [arguments]``.

The file MARK is made when it fails.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from act_lightning.cli import main
from act_lightning.errors import ActError, ConfigIssue

_REFUSED = ActError(ConfigIssue("a setting", 1, "must be another here", "Write 2."))
_FULL, _MEMORY = OSError(errno.ENOSPC, "No space left on device"), RuntimeError("out of memory on this device")
POINTS = {
    "prepare": ("act_lightning.data.datamodule", "AbilityDataModule.setup", _REFUSED),
    "profile": ("act_lightning.profiling.pair", "ResidentPair.run", _MEMORY),
    "load": ("act_lightning.checkpoints.reader", "CheckpointReader.rows", _FULL),
    "inject": ("act_lightning.transfer.injection", "MaskedInjection.apply_", _REFUSED),
    "step": ("act_lightning.module", "AbilityTransferModule.training_step", _MEMORY),
    "validate": ("act_lightning.module", "AbilityTransferModule.validation_step", _MEMORY),
    "save": ("lightning.pytorch.trainer.trainer", "Trainer.save_checkpoint", _FULL),
    "export": ("act_lightning.training.sharding", "Layout.whole", _REFUSED),
}


def fail_at(point: str, mark: Path) -> None:
    """Have the function at a point raise instead."""
    module, path, error = POINTS[point]
    owner, name = path.split(".")

    def fail(*_: Any, **__: Any) -> None:
        mark.touch()
        raise error

    setattr(getattr(import_module(module), owner), name, fail)


if __name__ == "__main__":
    point, rank, mark, *arguments = sys.argv[1:]
    if os.environ.get("LOCAL_RANK", "0") == rank:
        fail_at(point, Path(mark))
    sys.exit(main(arguments))
