"""Lightning's FSDP1 on CPU processes: its Trainer asks for a GPU, and torch for the device's name."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel


class OnCPU(FullyShardedDataParallel):
    """The same, told that its device is the CPU, which has no number."""

    def __init__(self, *args: Any, device_id: None = None, **kwargs: Any) -> None:
        super().__init__(*args, device_id=torch.device("cpu"), **kwargs)


class FSDP1(FSDPStrategy):
    """The same, but for its type, which is what a Trainer without a GPU refuses."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        with patch("torch.distributed.fsdp.FullyShardedDataParallel", OnCPU):
            return super()._setup_model(model)
