"""The stand-in device under a Lightning Trainer, and the package's branches for CUDA on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch.utils._pytree import tree_leaves

from tests.standin.device import DEVICE, NAME
from tests.standin.records import PACKAGE


class StandInAccelerator(Accelerator):
    """One device."""

    def setup_device(self, device: torch.device) -> None:
        if device.type != NAME:
            raise ValueError(f"the device must be {NAME}, and is {device}")

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


class StandInStrategy(SingleDeviceStrategy):
    """One device, whose ``reduce`` takes what NCCL would: tensors of the device."""

    def __init__(self) -> None:
        super().__init__(device=DEVICE)

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        for leaf in tree_leaves(tensor):
            if isinstance(leaf, torch.Tensor) and leaf.device != DEVICE:
                raise RuntimeError(f"No backend type associated with device type {leaf.device.type}")
        return super().reduce(tensor, *args, **kwargs)


@contextmanager
def trainers_on_standin() -> Iterator[None]:
    """Put every Trainer that is made inside the block on the device, in mixed precision as well."""
    original = _AcceleratorConnector.__init__
    signature = inspect.signature(original)

    def on_standin(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        bound.arguments |= {"accelerator": StandInAccelerator(), "strategy": StandInStrategy(), "devices": 1}
        _use_mixed_precision(bound.arguments)
        original(*bound.args, **bound.kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_AcceleratorConnector, "__init__", on_standin)
        yield


def _use_mixed_precision(arguments: dict[str, Any]) -> None:
    """Make plugins of mixed precision for the device: Lightning makes them for CUDA, a config for the CPU."""
    plugins = list(arguments["plugins"] or [])
    if arguments["precision"] == "bf16-mixed":
        plugins.append(MixedPrecision("bf16-mixed", NAME))
        arguments["precision"] = None
    for index, plugin in enumerate(plugins):
        if isinstance(plugin, MixedPrecision) and plugin.precision == "16-mixed":
            plugins[index] = MixedPrecision("16-mixed", NAME, torch.amp.GradScaler(NAME))
    arguments["plugins"] = plugins


@contextmanager
def changed_source(change: Callable[[str, str], str]) -> Iterator[None]:
    """Change the source of the package's modules that are imported inside the block; no file is written.

    ``change`` gets a module's name and its source.
    """
    original = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, name: str) -> CodeType | None:
        if name.partition(".")[0] != PACKAGE:
            return original(loader, name)
        source = change(name, loader.get_data(loader.path).decode())
        return compile(source, loader.path, "exec", dont_inherit=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SourceFileLoader, "get_code", get_code)
        yield


def cuda_as_standin(name: str, source: str) -> str:
    """A module's source whose branches for CUDA are those for the device."""
    return source.replace('"cuda"', f'"{NAME}"').replace("torch.cuda.", f"torch.{NAME}.")
