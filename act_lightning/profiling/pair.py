"""A pair of models: target and sources read the same tokens, and their outputs at answer tokens are compared."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_lightning.architecture import output_embedding
from act_lightning.data.batches import AnswerPositions, BufferPool, normalize_batch
from act_lightning.defaults import IGNORED
from act_lightning.profiling.channel_means import ChannelMeans

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


class Reader:
    """One model of a pair, in evaluation mode. By default all its weights are on the device."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def read(self, inputs: Batch) -> None:
        """Run the model on inputs that are on its device."""
        self.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            position_ids=inputs.get("position_ids"),
            use_cache=False,
        )

    def weights(self, module: str) -> dict[str, Tensor]:
        """The parameters of one module, by their names in it, on the device."""
        return dict(self.model.get_submodule(module).named_parameters(recurse=False))


def rerun_with_weights(module: nn.Module, weights: Mapping[str, Tensor], *args: Any) -> Tensor:
    """The output of a module with other weights and the same settings. No hook is called.

    Args:
        module: A module whose parameters are all its own, none a child's.
        weights: The parameters by their names in the module; others are ignored.
        args: The module's inputs.
    """
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    other = copy.copy(module)
    # A shallow copy with a parameter table of its own. torch.func.functional_call would run hooks, and whatever stands
    # in for `forward` on this instance.
    other.__dict__["_parameters"] = {**module._parameters, **{name: weights[name] for name in names}}
    output: Tensor = type(module).forward(other, *args)
    return output


Rerun = Callable[[Mapping[str, Tensor]], Tensor]
"""Runs a module again on the same input with other weights, and returns its output at answer tokens."""


@contextmanager
def capture_outputs(
    model: PreTrainedModel,
    names: Sequence[str],
    answers: AnswerPositions,
    sink: Callable[[str, Tensor, Rerun], None],
    pool: BufferPool | None = None,
) -> Iterator[None]:
    """Hand the output of every named module at answer tokens to ``sink``; the head computes no other logits.

    Args:
        model: A causal language model.
        names: Full names of modules.
        answers: The positions of answer tokens.
        sink: Receives a module's name, its output at answer tokens, and a :data:`Rerun`, in the order of the forward
            pass.
        pool: Where outputs are copied to. Without one the sink may not keep them: they may be views of what the model
            goes on to change in place.
    """
    head = output_embedding(model)

    def capture(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        take = partial(torch.squeeze, dim=0) if module is head else partial(answers.take, buffers=pool)

        def rerun(weights: Mapping[str, Tensor]) -> Tensor:
            values, *rest = args
            if values.is_floating_point():  # all modules but embeddings treat each token alone: answer tokens suffice
                return rerun_with_weights(module, weights, take(values), *rest)
            return take(rerun_with_weights(module, weights, values, *rest))

        sink(name, take(output), rerun)

    with ExitStack() as stack:
        if head is not None:
            stack.callback(head.register_forward_pre_hook(answers.take_from_input).remove)
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_hook(partial(capture, name)).remove)
        yield


_Waiting = defaultdict[str, deque[tuple[Tensor, Tensor | None]]]
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

    def take_target(name: str, output: Tensor, rerun: Rerun) -> None:
        for source, metric, queues in zip(sources, means, waiting, strict=True):
            source_weight_output = rerun(source.weights(name)) if scorer.needs_source_weights else None
            if scorer.needs_source:
                queues[name].append((output, source_weight_output))
            else:
                metric.update(name, output, None, source_weight_output, chunk)

    def take_source(metric: ChannelMeans, queues: _Waiting, name: str, output: Tensor, _: Rerun) -> None:
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
