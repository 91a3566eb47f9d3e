"""What an update of fine-tuning covers, and whether its precision keeps small steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from act_lightning.planning.problem import Problem
from act_lightning.planning.run import Run

PAPER_UPDATE = 16


def update_problems(run: Run) -> list[Problem]:
    """Notes on the number of samples an update covers, and a warning on precisions that lose small updates."""
    problems = []
    processes = process_count(run.trainer)
    accumulated = run.trainer.get("accumulate_grad_batches") or 1
    if processes is None:
        message = "the number of processes is chosen at start, so the size of an update is not known"
        problems.append(Problem("note", "trainer.devices", message, "Name a number of devices."))
    elif (samples := run.data.batch_size * accumulated * processes) != PAPER_UPDATE:
        message = (
            f"an update covers {samples} samples (data.batch_size {run.data.batch_size} × accumulate_grad_batches "
            f"{accumulated} × {processes} processes); the paper's cover {PAPER_UPDATE}"
        )
        remedy = "Change one of them, unless another size is what you want."
        problems.append(Problem("warning", "trainer.accumulate_grad_batches", message, remedy))
    if str(run.trainer.get("precision")) in ("bf16-true", "bf16", "16-true"):
        message = f"weights in {run.trainer['precision']} lose most updates at a learning rate of 2e-5 to rounding"
        remedy = "Use bf16-mixed, which keeps float32 weights."
        problems.append(Problem("warning", "trainer.precision", message, remedy))
    return problems


def process_count(trainer: Mapping[str, Any]) -> int | None:
    """How many processes a config asks for, or ``None`` where Lightning counts the devices at start."""
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes") or 1
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        devices = len(devices)
    if isinstance(devices, int) and devices > 0:
        return int(devices * nodes)
    on_cpu = trainer.get("accelerator") == "cpu"
    return int(nodes) if on_cpu else None
