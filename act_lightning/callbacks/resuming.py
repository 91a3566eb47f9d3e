"""Whether a fit resumes from a checkpoint, which a callback wants to know before Lightning says so.

Lightning sets ``trainer.ckpt_path`` after ``Callback.setup`` (and, when the strategy shards, after ``on_fit_start``),
but profiling a pair of models must not be repeated when training resumes. The path is at that time a local
variable of ``Trainer._run`` further down the stack, and is read there.
"""

from __future__ import annotations

import inspect

import lightning as L


def resumes(trainer: L.Trainer) -> bool:
    """Whether the running ``fit`` was given a checkpoint to resume from."""
    running = getattr(type(trainer), "_run").__code__  # noqa: B009 - a private name
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is running and frame.f_locals.get("self") is trainer:
            return bool(frame.f_locals.get("ckpt_path"))
        frame = frame.f_back
    return bool(trainer.ckpt_path)
