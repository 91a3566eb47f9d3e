"""A checkpoint by all processes of a fit, in place when it is complete, whether it is a file or a folder of shards."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
from torch.distributed.checkpoint.api import CheckpointException

from act_lightning.checkpoints.atomic import beside, remove, remove_leftovers, sync
from act_lightning.errors import ActError, Fault

LAST = "last.ckpt"
_BEFORE = "last-before.ckpt"  # found by Lightning, as by us, where a kill has left nothing else


def save_whole(trainer: L.Trainer, place: Path) -> None:
    """Write the state of a fit to ``place``, which holds the checkpoint before it until the new one is complete.

    To be called on every process, after an update.

    Args:
        trainer: The Trainer that fits.
        place: A file ``*.ckpt``, or the folder that a strategy makes of it.

    Raises:
        ActError: On every process, if it could not be written; what was there is there then.
    """
    new: Path = trainer.strategy.broadcast(beside(place))
    if trainer.is_global_zero:
        remove_leftovers(place.parent, place.name)
    failure = trainer.strategy.broadcast(_written(trainer, new))
    if failure is not None:
        if trainer.is_global_zero:
            remove(new)
        raise ActError(
            Fault("checkpoint", str(place), f"must be written whole, but could not be ({failure})", _remedy(place))
        )
    if trainer.is_global_zero:
        _put(new, place)
    trainer.strategy.barrier("checkpoint in place")


def _written(trainer: L.Trainer, path: Path) -> str | None:
    """What went wrong in writing, on the first process, if anything did."""
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except (ActError, OSError, RuntimeError, CheckpointException) as error:
        trainer.strategy.barrier("Trainer.save_checkpoint")  # where the others wait, or each comes from its own error
        return str(error.__cause__ or error).splitlines()[0]
    return None


def _remedy(place: Path) -> str:
    kept = f"{place} is the one before; " if place.exists() else ""
    return f"{kept}free some space, permit writing there, or choose another folder; then go on with ckpt_path: last."


def _put(new: Path, place: Path) -> None:
    """Rename ``new`` to ``place``: in one step where both are files, else with the one before under a name of its own.

    Whenever a kill comes, a complete checkpoint has a name that resuming looks for. What is to be deleted is renamed
    first, for no half of it may have one.
    """
    before = place.with_name(_BEFORE)
    sync(new)
    if place.is_dir() or (place.exists() and new.is_dir()):
        _discard(before)
        os.replace(place, before)
    os.replace(new, place)
    sync(place.parent)
    _discard(before)


def _discard(path: Path) -> None:
    if path.exists():
        doomed = beside(path)
        os.replace(path, doomed)
        remove(doomed)
