"""The weights of one part of a model at a time: read from disk ahead of their turn, or kept in the host's memory."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_lightning.checkpoints.models import make_buffers, meta_model
from act_lightning.checkpoints.reader import CheckpointReader


class PartWeights(Protocol):
    """Brings the weights of a part (a decoder layer, an embedding) to the device, and takes them away again."""

    model: PreTrainedModel

    def expect(self, parts: Iterable[str]) -> None:
        """Say which parts come next."""

    def bring(self, part: str) -> None:
        """Put the weights of a part where they are computed with."""

    def drop(self, part: str) -> None:
        """Free that memory."""

    def close(self) -> None:
        """Leave the model as it was found."""


class DiskWeights:
    """A model without weights, whose parts are read from a Hugging Face folder when their turn comes.

    A thread reads the parts that come next. A tied matrix is read once for each part that has it, since keeping it
    would cost its memory all along. What is read is searched for NaN and infinity, cast and placed.

    Args:
        folder: A Hugging Face folder with safetensors weights.
        dtype: The dtype of all parameters.
        device: Where they are computed with.

    Attributes:
        model: The model; buffers have values, parameters outside of what was brought do not.

    Raises:
        ActError: As :class:`~act_lightning.checkpoints.reader.CheckpointReader`; when reading, NaN or infinity.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._reader = CheckpointReader(folder)
        self.model = meta_model(folder, dtype)
        self.model.name_or_path = str(folder)
        make_buffers(self.model, device)
        self.model.train(False)
        self._dtype, self._device = dtype, device
        self._empty: dict[str, dict[str, nn.Parameter]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._coming: dict[str, Future[dict[str, Tensor]]] = {}

    def expect(self, parts: Iterable[str]) -> None:
        """Begin to read parts in a thread."""
        for part in parts:
            if part not in self._coming and part not in self._empty:
                self._coming[part] = self._thread.submit(self._read, part)

    def bring(self, part: str) -> None:
        """Place a part that was read, or read it now."""
        if part in self._empty:
            return
        self.expect([part])
        values = self._coming.pop(part).result()
        self._empty[part] = {}
        for name, parameter in self.model.get_submodule(part).named_parameters(prefix=part, remove_duplicate=False):
            self._empty[part][name] = parameter
            on_device = values.pop(name).to(self._device, non_blocking=True)
            self._place(name, nn.Parameter(on_device, requires_grad=False))

    def drop(self, part: str) -> None:
        """Put parameters without memory back in their place."""
        for name, parameter in self._empty.pop(part, {}).items():
            self._place(name, parameter)

    def close(self) -> None:
        """Stop reading, and close the files."""
        for part in list(self._empty):
            self.drop(part)
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()
        self._reader.close()

    def _read(self, part: str) -> dict[str, Tensor]:
        module = self.model.get_submodule(part)
        names = [name for name, _ in module.named_parameters(prefix=part, remove_duplicate=False)]
        return {name: self._ready(self._reader.read(name).to(self._dtype)) for name in names}

    def _ready(self, values: Tensor) -> Tensor:
        return values.pin_memory() if self._device.type == "cuda" else values

    def _place(self, name: str, parameter: nn.Parameter) -> None:
        owner, _, leaf = name.rpartition(".")
        self.model.get_submodule(owner)._parameters[leaf] = parameter


class MemoryWeights:
    """A model in the host's memory, whose parts are copied to the device for their turn.

    Args:
        model: The model, with weights; left as it was found.
        device: Where its parts are computed with. Its buffers, which are small, stay there all along.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self.model = model
        self._device = device
        self._at_home: dict[str, dict[nn.Parameter, Tensor]] = {}
        self._buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.device != device}
        for name, buffer in self._buffers.items():
            self._place(name, buffer.to(device))

    def expect(self, parts: Iterable[str]) -> None:
        """Nothing to do: they are in memory."""

    def bring(self, part: str) -> None:
        """Copy a part to the device."""
        if part in self._at_home:
            return
        parameters = self.model.get_submodule(part).parameters()
        self._at_home[part] = {parameter: parameter.data for parameter in parameters}
        for parameter, values in self._at_home[part].items():
            parameter.data = values.to(self._device)

    def drop(self, part: str) -> None:
        """Free the copies."""
        for parameter, values in self._at_home.pop(part, {}).items():
            parameter.data = values

    def close(self) -> None:
        """Put everything back."""
        for part in list(self._at_home):
            self.drop(part)
        for name, buffer in self._buffers.items():
            self._place(name, buffer)

    def _place(self, name: str, buffer: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        self.model.get_submodule(owner)._buffers[leaf] = buffer
