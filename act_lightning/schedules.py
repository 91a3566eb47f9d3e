"""Learning-rate schedules that torch has no class of."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """From near zero up to the learning rate along a line, then down along half a cosine, once over the whole run.

    Args:
        optimizer: Its learning rate is the highest.
        total_steps: Updates of the run; a run's module fills it in.
        warmup: Share of the updates in which the rate rises.
        final: What the rate falls to, as a share of the highest.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule, rates = WarmupCosine(sgd, total_steps=6, warmup=0.34, final=0.1), []
    >>> for _ in range(6):
    ...     rates.append(round(sgd.param_groups[0]["lr"], 3))
    ...     sgd.step()
    ...     schedule.step()
    >>> rates
    [0.5, 1.0, 1.0, 0.775, 0.325, 0.1]
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.03, final: float = 0.0) -> None:
        if total_steps < 1 or not 0 <= warmup < 1 or not 0 <= final <= 1:
            raise ValueError("total_steps must be positive, warmup in [0, 1), and final in [0, 1]")
        super().__init__(optimizer, partial(_factor, total_steps, math.floor(warmup * total_steps), final))


def _factor(total: int, rising: int, final: float, step: int) -> float:
    """What the highest rate is multiplied by in the update after ``step`` others."""
    if step < rising:
        return (step + 1) / rising
    done = min(1.0, (step - rising) / max(1, total - rising - 1))
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
