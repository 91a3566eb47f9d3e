"""Two ways to run a pair that is too large for the device: a part at a time for every batch, or batches by stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from act_lightning.activations import Batch, ChannelMeans, Pair, Reader, Reading, ReadyBatch, compare, forward
from act_lightning.stages.division import divide
from act_lightning.stages.staged import Passage, StagedModel
from act_lightning.stages.weights import MemoryWeights, PartWeights


class OffloadedReader(Reader):
    """A model in the host's memory, each part of which is on the device only while it computes.

    Args:
        model: A causal language model in evaluation mode.
        device: Where it computes.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        super().__init__(model)
        self._device = device

    @contextmanager
    def ready(self) -> Iterator[OffloadedReader]:
        """Bring parts while this lasts; afterwards the model is as it was found."""
        weights = MemoryWeights(self.model, self._device)  # type: ignore[arg-type]
        with ExitStack() as stack:
            stack.callback(weights.close)
            for part in divide(weights.model).parts:
                _bring_for_its_turn(weights, part, stack)
            yield self

    def weights(self, module: str) -> dict[str, Tensor]:
        """The parameters of one module, on the device."""
        return {name: values.to(self._device) for name, values in super().weights(module).items()}


def _bring_for_its_turn(weights: PartWeights, part: str, stack: ExitStack) -> None:
    module = weights.model.get_submodule(part)
    stack.callback(module.register_forward_pre_hook(lambda *_: weights.bring(part)).remove)
    stack.callback(module.register_forward_hook(lambda *_: weights.drop(part), always_call=True).remove)


class StagedReader(Reader):
    """A model that takes every batch through one stage, then through the next.

    Args:
        staged: The model.
    """

    def __init__(self, staged: StagedModel) -> None:
        super().__init__(staged.model)
        self.staged = staged
        self.passage = Passage()

    def read(self, batch: Batch) -> None:
        """Take a batch through the present stage."""
        self.staged.advance(self.passage, lambda model: forward(model, batch))

    def weights(self, module: str) -> dict[str, Tensor]:
        """The parameters of one module of the present stage."""
        self.staged.require(module)
        return super().weights(module)


class LayerwisePair(Pair):
    """Many batches go through one stage of all models, then through the next: only one stage's weights are at hand.

    Args:
        target: The model to be improved, ready to be staged.
        sources: Its siblings by folder.
        device: Where they compute.
        tokens_together: How many tokens, padding included, go from stage to stage together. Between stages the host's
            memory keeps a hidden state for each of them and each model.
        shows_progress: Whether to show the stages as they pass.
    """

    def __init__(
        self,
        target: StagedModel,
        sources: Mapping[Path, StagedModel],
        device: torch.device,
        tokens_together: int,
        shows_progress: bool = False,
    ) -> None:
        self.target = target
        self.sources = sources
        self.device = device
        self.tokens_together = tokens_together
        self.shows_progress = shows_progress

    def run(self, readings: Iterable[Reading], means: Sequence[tuple[Path, ChannelMeans]]) -> Iterator[Reading]:
        """Take as many batches as there is memory for through all stages, then the next."""
        for wave in _waves(readings, self.tokens_together):
            self._run_together(wave, [self.sources[folder] for folder, _ in means], [its for _, its in means])
            yield from wave

    def _run_together(
        self, readings: Sequence[Reading], sources: Sequence[StagedModel], means: Sequence[ChannelMeans]
    ) -> None:
        models = (self.target, *sources)
        readers = [StagedReader(staged) for staged in models]
        waiting = [_Waiting.of(reading, models) for reading in readings]
        waiting = [one for one in waiting if one.batch.answers.tokens]
        stages = range(self.target.stages if waiting else 0)
        for stage in tqdm(stages, desc="layers", leave=False, disable=not self.shows_progress):
            with ExitStack() as stack:
                for staged in dict.fromkeys(models):
                    stack.enter_context(staged.at(stage))
                for one in waiting:
                    for reader, passage in zip(readers, one.passages, strict=True):
                        reader.passage = passage
                    names = self.target.observable()
                    compare(readers[0], readers[1:], one.batch.to(self.device), means, one.chunk, names)


class _Waiting(NamedTuple):
    """A batch between two stages, and how far it has come in each model."""

    batch: ReadyBatch
    chunk: int
    passages: list[Passage]

    @classmethod
    def of(cls, reading: Reading, models: Sequence[StagedModel]) -> _Waiting:
        return cls(ReadyBatch.of(reading.batch, models[0].model), reading.chunk, [Passage() for _ in models])


def _waves(readings: Iterable[Reading], most: int) -> Iterator[list[Reading]]:
    """Consecutive readings of at most so many tokens together, one at least."""
    wave: list[Reading] = []
    tokens = 0
    for reading in readings:
        size = reading.batch["input_ids"].numel()
        if wave and tokens + size > most:
            yield wave
            wave, tokens = [], 0
        wave.append(reading)
        tokens += size
    if wave:
        yield wave
