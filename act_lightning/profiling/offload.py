"""Weights of one part of a model at a time: read from disk ahead of their turn, or copied from the host's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_lightning.architecture import assign, decoder_parts
from act_lightning.checkpoints.reader import CheckpointReader, model_without_weights
from act_lightning.data.batches import to_device
from act_lightning.profiling.pair import Reader


class DiskWeights:
    """A model without weights, whose parts are read from a Hugging Face folder when their turn comes.

    A thread reads the parts that come next. A tied matrix is read once for each part that has it, since keeping it
    would cost its memory all along. What is read is checked for NaN and infinity, cast and moved to the device.

    Attributes:
        model: The model. Buffers have values; parameters of parts that are not loaded have none.

    Raises:
        ActError: As :class:`~act_lightning.checkpoints.reader.CheckpointReader`; when reading, NaN or infinity.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._reader = CheckpointReader(folder)
        self.model = model_without_weights(self._reader, dtype, device)
        self._dtype, self._device = dtype, device
        self._placeholders: dict[str, dict[str, nn.Parameter]] = {}  # of loaded parts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._pending: dict[str, Future[dict[str, Tensor]]] = {}

    def prefetch(self, parts: Iterable[str]) -> None:
        """Begin to read parts in a thread."""
        for part in parts:
            if part not in self._pending and part not in self._placeholders:
                self._pending[part] = self._thread.submit(self._read, part)

    def _read(self, part: str) -> dict[str, Tensor]:
        values = {}
        for name, _ in self.model.get_submodule(part).named_parameters(prefix=part, remove_duplicate=False):
            tensor = self._read_parameter(name)
            values[name] = tensor.pin_memory() if self._device.type == "cuda" else tensor
        return values

    def _read_parameter(self, name: str) -> Tensor:
        return self._reader.read(name).to(self._dtype)

    def load(self, part: str) -> None:
        """Move a part that was read to the device, or read it now."""
        if part in self._placeholders:
            return
        self.prefetch([part])
        values = self._pending.pop(part).result()
        module = self.model.get_submodule(part)
        self._placeholders[part] = dict(module.named_parameters(prefix=part, remove_duplicate=False))
        for name in self._placeholders[part]:
            on_device = to_device(values.pop(name), self._device)
            assign(self.model, name, nn.Parameter(on_device, requires_grad=False))

    def unload(self, part: str) -> None:
        """Put parameters without memory in their place."""
        for name, parameter in self._placeholders.pop(part, {}).items():
            assign(self.model, name, parameter)

    def close(self) -> None:
        """Stop reading, and close the files."""
        for part in list(self._placeholders):
            self.unload(part)
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        self._reader.close()


class MemoryWeights:
    """A model in the host's memory, whose parts are copied to the device for their turn.

    Args:
        model: The model, with weights; it is left as it was.
        device: Where its parts are computed with. Its buffers, which are small, stay there all along.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self.model = model
        self._device = device
        self._host_values: dict[str, dict[nn.Parameter, Tensor]] = {}  # of loaded parts
        self._host_buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.device != device}
        for name, buffer in self._host_buffers.items():
            assign(model, name, to_device(buffer, device))

    def prefetch(self, parts: Iterable[str]) -> None:
        """Do nothing: they are in memory."""

    def load(self, part: str) -> None:
        """Copy a part to the device."""
        if part in self._host_values:
            return
        parameters = self.model.get_submodule(part).parameters()
        self._host_values[part] = {parameter: parameter.data for parameter in parameters}
        for parameter, values in self._host_values[part].items():
            parameter.data = to_device(values, self._device)

    def unload(self, part: str) -> None:
        """Free the copies."""
        for parameter, values in self._host_values.pop(part, {}).items():
            parameter.data = values

    def close(self) -> None:
        """Put everything back."""
        for part in list(self._host_values):
            self.unload(part)
        for name, buffer in self._host_buffers.items():
            assign(self.model, name, buffer)


PartWeights = DiskWeights | MemoryWeights
"""Loads the weights of a part (a decoder layer, an embedding) to the device, and unloads them."""


class OffloadedReader(Reader):
    """A model in the host's memory, each part of which is on the device only while it computes."""

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        super().__init__(model)
        self._device = device

    @contextmanager
    def ready(self) -> Iterator[OffloadedReader]:
        """Load and unload parts within the block; afterwards the model is as it was."""
        weights, parts = MemoryWeights(self.model, self._device), decoder_parts(self.model)
        with closing(weights), ExitStack() as stack:
            for part in (*parts.outer, *parts.layers):
                module = self.model.get_submodule(part)
                stack.callback(module.register_forward_pre_hook(lambda *_, part=part: weights.load(part)).remove)
                unload = module.register_forward_hook(lambda *_, part=part: weights.unload(part), always_call=True)
                stack.callback(unload.remove)
            yield self

    def weights(self, module: str) -> dict[str, Tensor]:
        """The parameters of one module, on the device."""
        return {name: to_device(values, self._device) for name, values in super().weights(module).items()}
