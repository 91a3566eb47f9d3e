"""How a pair is run: target and sources read the same tokens, and what they give goes to whoever measures it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from act_lightning.activations.means import ChannelMeans
from act_lightning.activations.observing import Again, observed
from act_lightning.activations.positions import IGNORED, AnswerPositions, unambiguous

Batch = Mapping[str, Tensor]
"""``input_ids`` and ``labels``, int64 ``[rows, length]``, with ``attention_mask`` of rows that are padded on the right,
or ``position_ids`` that restart at every sample of a packed row; answer tokens are where the labels are not −100."""


class Reading(NamedTuple):
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
    def run(self, readings: Iterable[Reading], means: Sequence[tuple[Path, ChannelMeans]]) -> Iterator[Reading]:
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


class ResidentPair(Pair):
    """All models are in memory and read each batch in turn, in lockstep.

    The target's outputs at the answer tokens of one batch wait in memory for the source's.

    Args:
        target: The model to be improved, in evaluation mode.
        sources: Its siblings by folder, on the same device.
    """

    def __init__(self, target: nn.Module, sources: Mapping[Path, nn.Module]) -> None:
        self.target = target
        self.sources = sources

    def run(self, readings: Iterable[Reading], means: Sequence[tuple[Path, ChannelMeans]]) -> Iterator[Reading]:
        """Read one batch after the other."""
        device = next(self.target.parameters()).device
        models = [self.sources[folder] for folder, _ in means]
        for reading in readings:
            on_device = {name: values.to(device) for name, values in reading.batch.items()}
            compare_on_batch(self.target, models, on_device, [one for _, one in means], reading.chunk)
            yield reading


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
    batch = unambiguous(batch, target.config)
    answers = AnswerPositions(batch["labels"] != IGNORED)
    tokens = int(answers.mask.sum())
    if not tokens or not sources:
        return tokens
    names, scorer = means[0].modules_observed, means[0].scorer
    kept: list[dict[str, list[_Kept]]] = [{name: [] for name in names} for _ in sources]

    def keep(name: str, output: Tensor, again: Again) -> None:
        for source, waiting in zip(sources, kept, strict=True):
            swapped = again(weights_of(source, name)) if scorer.needs_swapped else None
            waiting[name].append(_Kept(output, swapped))

    def measure(name: str, output: Tensor, again: Again) -> None:
        for source, its in zip(sources, means, strict=True):
            swapped = again(weights_of(source, name)) if scorer.needs_swapped else None
            its.update(name, output, None, swapped, chunk)

    with torch.no_grad(), observed(target, names, answers, keep if scorer.needs_source else measure):
        _forward(target, batch)
    if scorer.needs_source:
        for source, its in zip(sources, means, strict=True):
            waiting = {name: deque(outputs) for name, outputs in kept.pop(0).items()}
            with torch.no_grad(), observed(source, names, answers, partial(_consume, waiting, its, chunk)):
                _forward(source, batch)
    return tokens


def _consume(
    waiting: Mapping[str, deque[_Kept]], means: ChannelMeans, chunk: int, name: str, output: Tensor, _: Again
) -> None:
    """Measure one run of a module, and let go of what waited for it."""
    kept = waiting[name].popleft()
    means.update(name, kept.target, output, kept.swapped, chunk)


def weights_of(model: nn.Module, module: str) -> dict[str, Tensor]:
    """The parameters of one module, by their names in it."""
    return dict(model.get_submodule(module).named_parameters(recurse=False))


def _forward(model: nn.Module, batch: Batch) -> None:
    mask = batch.get("attention_mask")
    model(
        input_ids=batch["input_ids"],
        attention_mask=None if mask is None or bool(mask.all()) else mask,
        position_ids=batch.get("position_ids"),
        use_cache=False,
    )
