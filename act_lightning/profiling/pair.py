"""A pair of models: target and sources read the same tokens, and their outputs at answer tokens are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_lightning.data.batches import (
    AnswerPositions,
    BufferPool,
    drop_implied,
    known_masks,
    normalize_batch,
    to_device,
)
from act_lightning.defaults import IGNORED
from act_lightning.profiling.channel_means import ChannelMeans
from act_lightning.profiling.outputs import Output, capture_outputs, owner_of

Batch = Mapping[str, Tensor]
"""``input_ids`` and ``labels``, int64 ``[rows, length]``, with ``attention_mask`` of rows that are padded on the right,
or ``position_ids`` that restart at every sample of a packed row; answer tokens are where the labels are not −100."""


class ChunkBatch(NamedTuple):
    """A batch of samples of one chunk, with the number of the chunk."""

    batch: Batch
    chunk: int = 0


@dataclass(frozen=True)
class ModelInputs:
    """A batch split into what a model takes and where its answer tokens are."""

    inputs: Batch
    answers: AnswerPositions

    @classmethod
    def of(cls, batch: Batch, model: nn.Module) -> ModelInputs:
        """Prepare a batch for a model, on the host: finding answer tokens on a device would wait for its queue."""
        inputs = drop_implied(normalize_batch(batch, model.config))
        return cls(inputs, AnswerPositions.of(inputs.pop("labels") != IGNORED))

    def to(self, device: torch.device) -> ModelInputs:
        """The same on a device."""
        inputs = {name: to_device(values, device) for name, values in self.inputs.items()}
        return ModelInputs(inputs, self.answers.to(device))


class Reader:
    """One model of a pair, in evaluation mode. By default all its weights are on the device."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._modules = dict(model.named_modules())

    def read(self, inputs: Batch) -> None:
        """Run the model on the inputs of :class:`ModelInputs`, on its device."""
        with known_masks(inputs):
            self.model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs.get("attention_mask"),
                position_ids=inputs.get("position_ids"),
                use_cache=False,
            )

    def weights(self, module: str) -> dict[str, Tensor]:
        """The parameters of one module, by their names in it, on the device; of packed experts all of theirs."""
        owner = owner_of(module, self._modules)
        return dict(self._modules[owner].named_parameters(recurse=False))


_Waiting = defaultdict[str, deque[tuple[Output, Output | None]]]
"""By module, for each of its calls: the target's output, and its output with the source's weights, if needed."""


@torch.no_grad()
def compare(
    target: Reader,
    sources: Sequence[Reader],
    batch: ModelInputs,
    means: Sequence[ChannelMeans],
    chunk: int = 0,
    names: Sequence[str] | None = None,
    pool: BufferPool | None = None,
) -> None:
    """Run the target and every source once on a batch, and add their outputs to each source's means.

    Args:
        target: The model to be improved.
        sources: Its siblings, on the same device.
        batch: On the same device.
        means: One for each source, all with the same scorer.
        chunk: The chunk of samples that the batch belongs to.
        names: The modules that run; by default all that own channels.
        pool: Where the target's outputs wait for the sources'; cleared first. Reuse it for several batches.
    """
    if not batch.answers.tokens or not sources:
        return
    scorer = means[0].scorer
    names = means[0].module_names if names is None else names
    pool = BufferPool() if pool is None else pool
    pool.clear()
    waiting: list[_Waiting] = [defaultdict(deque) for _ in sources]

    def take_target(name: str, output: Output, rerun: Callable[[Mapping[str, Tensor]], Output]) -> None:
        for source, metric, queues in zip(sources, means, waiting, strict=True):
            source_weight_output = rerun(source.weights(name)) if scorer.needs_source_weights else None
            if scorer.needs_source:
                queues[name].append((output, source_weight_output))
            else:
                metric.update(name, output, None, source_weight_output, chunk)

    def take_source(metric: ChannelMeans, queues: _Waiting, name: str, output: Output, _: object) -> None:
        target_output, source_weight_output = queues[name].popleft()
        metric.update(name, target_output, output, source_weight_output, chunk)

    with capture_outputs(target.model, names, batch.answers, take_target, pool if scorer.needs_source else None):
        target.read(batch.inputs)
    if not scorer.needs_source:
        return
    for source, metric, queues in zip(sources, means, waiting, strict=True):
        with capture_outputs(source.model, names, batch.answers, partial(take_source, metric, queues)):
            source.read(batch.inputs)


class Pair(ABC):
    """A target and its sources, wherever their weights are, ready to read batches."""

    @abstractmethod
    def run(self, batches: Iterable[ChunkBatch], means: Sequence[tuple[Path, ChannelMeans]]) -> Iterator[ChunkBatch]:
        """Run the target and the named sources on batches, and update the means.

        The target reads each batch once, whatever the number of sources. For every batch with an answer token,
        ``update`` of each of the means is called once for every call of a module.

        Args:
            batches: The batches.
            means: The folder of a source, and the means of its comparison with the target, all with the same scorer. A
                source may be named several times.

        Yields:
            Each of the batches when it is done, in any order.
        """


class ResidentPair(Pair):
    """All models read each batch in turn, in lockstep.

    The target's outputs at the answer tokens of one batch wait in memory for the source's.

    Args:
        target: The model to be improved, in evaluation mode.
        sources: Its siblings by folder.
        device: Where all of them compute; by default the target's device.
    """

    def __init__(
        self,
        target: Reader | PreTrainedModel,
        sources: Mapping[Path, Reader | PreTrainedModel],
        device: torch.device | None = None,
    ) -> None:
        self.target = target if isinstance(target, Reader) else Reader(target)
        self.sources = {
            folder: source if isinstance(source, Reader) else Reader(source) for folder, source in sources.items()
        }
        self.device = device or next(self.target.model.parameters()).device

    def run(self, batches: Iterable[ChunkBatch], means: Sequence[tuple[Path, ChannelMeans]]) -> Iterator[ChunkBatch]:
        """Read one batch after the other."""
        readers = [self.sources[folder] for folder, _ in means]
        metrics = [metric for _, metric in means]
        pool = BufferPool()
        for batch in batches:
            inputs = ModelInputs.of(batch.batch, self.target.model).to(self.device)
            compare(self.target, readers, inputs, metrics, batch.chunk, pool=pool)
            yield batch
