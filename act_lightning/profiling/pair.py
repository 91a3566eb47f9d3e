"""How a pair is run: target and sources read the same tokens, and what they give goes to whoever measures it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from act_lightning.data.batches import AnswerPositions, BufferPool, normalize_batch
from act_lightning.defaults import IGNORED
from act_lightning.profiling.capture import Rerun, capture_outputs
from act_lightning.profiling.channel_means import ChannelMeans

Batch = Mapping[str, Tensor]
"""``input_ids`` and ``labels``, int64 ``[rows, length]``, with ``attention_mask`` of rows that are padded on the right,
or ``position_ids`` that restart at every sample of a packed row; answer tokens are where the labels are not −100."""


class ChunkBatch(NamedTuple):
    """What is read at once.

    Attributes:
        batch: On any device.
        chunk: The number of the chunk of samples that all of it belongs to; means are also kept for each chunk.
    """

    batch: Batch
    chunk: int = 0


class Pair(ABC):
    """A target and its sources, wherever their weights are, ready to read batches.

    What is measured is the business of :class:`ChannelMeans` and its scorer; which modules are seen, and what of them,
    they say.
    """

    @abstractmethod
    def run(self, readings: Iterable[ChunkBatch], means: Sequence[tuple[Path, ChannelMeans]]) -> Iterator[ChunkBatch]:
        """Let the target, and the sources that are named, read batches, and update the means.

        The target reads each batch once, whatever the number of sources. For every batch with an answer token and
        every module, ``update`` of each of the means is called once for each time that the module is run, with the
        number of the chunk.

        Args:
            readings: What is read.
            means: The folder of a source, and what is measured between it and the target; all with one scorer. A
                source may be named several times.

        Yields:
            Each of the readings when it is done, in any order.
        """


class Reader:
    """One model of a pair, all of whose weights are at hand.

    Args:
        model: A causal language model in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def read(self, batch: Batch) -> None:
        """Let the model read a batch that is on its device."""
        forward(self.model, batch)

    def weights(self, module: str) -> dict[str, Tensor]:
        """The parameters of one module, by their names in it, on the device."""
        return dict(self.model.get_submodule(module).named_parameters(recurse=False))


class ResidentPair(Pair):
    """All models read each batch in turn, in lockstep.

    The target's outputs at the answer tokens of one batch wait in memory for the source's.

    Args:
        target: The model to be improved, in evaluation mode.
        sources: Its siblings by folder, on the same device.
        device: That device; by default the target's.
    """

    def __init__(
        self, target: Reader | nn.Module, sources: Mapping[Path, Reader | nn.Module], device: torch.device | None = None
    ) -> None:
        self.target = _reader(target)
        self.sources = {folder: _reader(source) for folder, source in sources.items()}
        self.device = device or next(self.target.model.parameters()).device

    def run(self, readings: Iterable[ChunkBatch], means: Sequence[tuple[Path, ChannelMeans]]) -> Iterator[ChunkBatch]:
        """Read one batch after the other."""
        readers = [self.sources[folder] for folder, _ in means]
        workspace = BufferPool()
        for reading in readings:
            ready = ModelInputs.of(reading.batch, self.target.model).to(self.device)
            compare(self.target, readers, ready, [one for _, one in means], reading.chunk, workspace=workspace)
            yield reading


def _reader(model: Reader | nn.Module) -> Reader:
    return model if isinstance(model, Reader) else Reader(model)


@dataclass(frozen=True)
class ModelInputs:
    """A batch as models read it, with its answer tokens found.

    Attributes:
        inputs: ``input_ids``, and whichever of ``attention_mask`` and ``position_ids`` says something.
        answers: Where its answer tokens are.
    """

    inputs: Batch
    answers: AnswerPositions

    @classmethod
    def of(cls, batch: Batch, model: nn.Module) -> ModelInputs:
        """Make a batch ready; before it goes to a device, which would have to be waited for.

        Args:
            batch: The batch.
            model: The model that is to read it.
        """
        inputs = dict(normalize_batch(batch, model.config))
        answers = AnswerPositions(inputs.pop("labels") != IGNORED)
        mask = inputs.get("attention_mask")
        if mask is not None and bool(mask.all()):
            del inputs["attention_mask"]
        return cls(inputs, answers)

    def to(self, device: torch.device) -> ModelInputs:
        """The same on a device."""
        inputs = {name: values.to(device) for name, values in self.inputs.items()}
        return ModelInputs(inputs, self.answers.to(device))


class _Kept(NamedTuple):
    """What one run of a module of the target leaves for a source: its output, and its output with their weights."""

    target: Tensor
    swapped: Tensor | None


def compare_on_batch(
    target: nn.Module, sources: Sequence[nn.Module], batch: Batch, means: Sequence[ChannelMeans], chunk: int = 0
) -> int:
    """Run the target once and every source once over a batch, and add what they give to each source's means.

    Args:
        target: The model to be improved, in evaluation mode.
        sources: Its siblings, on the same device.
        batch: On the same device, too.
        means: What is measured, for each source, all with one scorer.
        chunk: The number of the chunk of samples that the batch belongs to.

    Returns:
        Number of answer tokens in the batch.
    """
    ready = ModelInputs.of(batch, target)
    compare(Reader(target), [Reader(source) for source in sources], ready, means, chunk)
    return ready.answers.tokens


def compare(
    target: Reader,
    sources: Sequence[Reader],
    batch: ModelInputs,
    means: Sequence[ChannelMeans],
    chunk: int = 0,
    names: Sequence[str] | None = None,
    workspace: BufferPool | None = None,
) -> None:
    """Let the target and every source read a batch, and add what they give to each source's means.

    Args:
        target: The model to be improved.
        sources: Its siblings, on the same device.
        batch: On the same device, too.
        means: What is measured, for each source, all with one scorer.
        chunk: The number of the chunk of samples that the batch belongs to.
        names: The modules that give something; by default all.
        workspace: Where the target's outputs wait for the sources'; cleared first. Worth having for several batches.
    """
    if not batch.answers.tokens or not sources:
        return
    names, scorer = means[0].modules_observed if names is None else names, means[0].scorer
    kept: list[dict[str, list[_Kept]]] = [{name: [] for name in names} for _ in sources]

    def keep(name: str, output: Tensor, again: Rerun) -> None:
        for source, waiting in zip(sources, kept, strict=True):
            swapped = again(source.weights(name)) if scorer.needs_swapped else None
            waiting[name].append(_Kept(output, swapped))

    def measure(name: str, output: Tensor, again: Rerun) -> None:
        for source, its in zip(sources, means, strict=True):
            swapped = again(source.weights(name)) if scorer.needs_swapped else None
            its.update(name, output, None, swapped, chunk)

    if workspace is None:
        workspace = BufferPool()
    workspace.clear()
    to_keep = (keep, workspace) if scorer.needs_source else (measure, None)
    with torch.no_grad(), capture_outputs(target.model, names, batch.answers, *to_keep):
        target.read(batch.inputs)
    if scorer.needs_source:
        for source, its in zip(sources, means, strict=True):
            waiting = {name: deque(outputs) for name, outputs in kept.pop(0).items()}
            with (
                torch.no_grad(),
                capture_outputs(source.model, names, batch.answers, partial(_consume, waiting, its, chunk)),
            ):
                source.read(batch.inputs)


def _consume(
    waiting: Mapping[str, deque[_Kept]], means: ChannelMeans, chunk: int, name: str, output: Tensor, _: Rerun
) -> None:
    """Measure one run of a module, and let go of what waited for it."""
    kept = waiting[name].popleft()
    means.update(name, kept.target, output, kept.swapped, chunk)


def forward(model: nn.Module, batch: Batch) -> None:
    """Call a model with ``input_ids`` and whichever of ``attention_mask`` and ``position_ids`` there is."""
    model(
        input_ids=batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        position_ids=batch.get("position_ids"),
        use_cache=False,
    )
