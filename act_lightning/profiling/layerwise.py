"""A model run one stage at a time, with its own forward code, through any number of micro-batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from act_lightning.architecture import decoder_parts, modules_with_parameters
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.profiling.channel_means import ChannelMeans
from act_lightning.profiling.offload import MemoryWeights, PartWeights
from act_lightning.profiling.pair import Batch, ChunkBatch, ModelInputs, Pair, Reader, compare, forward


class Call(NamedTuple):
    """One call of a part in a forward pass.

    Attributes:
        part: The part's name.
        number: How often it was called before.
    """

    part: str
    number: int


@dataclass
class LayerState:
    """How far one micro-batch has come in one model.

    Attributes:
        outputs: What the parts of the last stage gave, in the host's memory.
        forms: What those of earlier stages gave: its shapes and dtypes, on the meta device.
    """

    outputs: dict[Call, Any] = field(default_factory=dict)
    forms: dict[Call, Any] = field(default_factory=dict)


class _EndOfStage(Exception):
    """Breaks a forward pass off when its stage is over."""


class LayerwiseModel:
    """A causal language model whose stages are run one by one; a context manager that leaves the model as it was.

    Args:
        weights: The model, and how its parts get their weights.
        device: Where they are computed with.

    Attributes:
        model: The model.
        stages: Number of stages: the layers and two.
    """

    def __init__(self, weights: PartWeights, device: torch.device) -> None:
        self.model: PreTrainedModel = weights.model
        self._weights, self._device = weights, device
        self._division = decoder_parts(self.model)
        self._numbers = {name: number for number, name in enumerate(self._division.layers, start=1)}
        self.stages = len(self._numbers) + 2
        self._stage_of: dict[str, int] = {}
        self._stage, self._passage, self._given = 0, LayerState(), dict[Call, Any]()
        self._calls: Counter[str] = Counter()
        self._brought: list[str] = []
        self._before: dict[str, Callable[..., Any] | None] = {}
        self._is_first = True

    def __enter__(self) -> LayerwiseModel:
        """Answer for every part from now on."""
        for name in (*self._division.outer, *self._division.layers):
            module = self.model.get_submodule(name)
            self._before[name] = vars(module).get("forward")
            module.forward = partial(self._call, name, module.forward)
        self._weights.expect(self._division.outer[:1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the parts their own ``forward`` back."""
        for name, before in self._before.items():
            module = self.model.get_submodule(name)
            del module.forward
            if before is not None:
                module.forward = before
        self._before.clear()
        self._weights.close()

    @contextmanager
    def at(self, stage: int) -> Iterator[None]:
        """Hold the weights of a stage, numbered from 0, and have the next read."""
        self._stage, self._is_first = stage, True
        layers, last = self._division.layers, self.stages - 1
        try:
            if 0 < stage < last:
                self._bring(layers[stage - 1])
            self._weights.expect([layers[stage]] if stage < len(layers) else self._untouched())
            yield
        finally:
            for part in self._brought:
                self._weights.drop(part)
            self._brought.clear()

    def observable(self) -> list[str]:
        """Names of the modules with parameters that may give an output in the present stage, those of layers first."""
        layer = self._division.layers[self._stage - 1 : self._stage] if self._stage else ()
        return [name for part in (*layer, *self._untouched()) for name in modules_with_parameters(self.model, part)]

    def require(self, module: str) -> None:
        """Bring the weights of a module outside the layers that other modules read before its own turn."""
        if module in self._division.outer:
            self._bring(module)

    def advance(self, passage: LayerState, forward: Callable[[PreTrainedModel], object]) -> None:
        """Take a micro-batch through the present stage.

        Args:
            passage: How far it has come; goes on.
            forward: Calls the model with the micro-batch, on the device, the same in every stage.

        Raises:
            ActError: If the architecture is not a chain of layers.
        """
        self._passage, self._given = passage, {}
        self._calls.clear()
        try:
            forward(self.model)
        except _EndOfStage:
            pass
        else:
            if self._stage < self.stages - 1:
                raise ActError(self._unlike_a_chain(self._division.layers[max(self._stage - 1, 0)], "is not called"))
        passage.forms |= {call: _forms(given) for call, given in passage.outputs.items()}
        passage.outputs = self._given
        self._passage, self._given, self._is_first = LayerState(), {}, False

    def _call(self, part: str, forward: Callable[..., Any], *args: object, **kwargs: object) -> object:
        call = Call(part, self._calls[part])
        self._calls[part] += 1
        if call in self._passage.outputs:
            return tree_map_only(Tensor, lambda kept: kept.to(self._device), self._passage.outputs[call])
        if call in self._passage.forms:
            return tree_map_only(Tensor, self._nothing, self._passage.forms[call])
        number = self._numbers.get(part)
        if number == 1 and self._stage == 0:
            raise _EndOfStage
        if self._stage_of.setdefault(part, self._stage) != self._stage or number not in (None, self._stage):
            raise ActError(self._unlike_a_chain(part, "is called out of turn"))
        if number is None:
            self._bring(part)
        if self._is_first and _has_nan((args, kwargs)) and not _has_nan(self._passage.outputs):
            raise ActError(self._unlike_a_chain(part, "reads what was computed long before"))
        output = forward(*args, **kwargs)
        if self._stage < self.stages - 1:  # nothing follows the last, whose logits are larger than all else
            self._given[call] = tree_map_only(Tensor, lambda values: values.to("cpu"), output)
        if number is not None:
            raise _EndOfStage
        return output

    def _untouched(self) -> list[str]:
        """Parts outside the layers that no earlier stage has called."""
        return [part for part in self._division.outer if self._stage_of.get(part, self._stage) == self._stage]

    def _bring(self, part: str) -> None:
        self._weights.bring(part)
        self._brought.append(part)

    def _nothing(self, form: Tensor) -> Tensor:
        value = float("nan") if form.is_floating_point() else 0
        return torch.full((), value, dtype=form.dtype, device=self._device).expand(form.shape)

    def _unlike_a_chain(self, part: str, reason: str) -> ConfigIssue:
        problem = f"must have layers that follow one another, each on the output of the last, and {part} {reason}"
        hint = "Choose profile.placement: resident or offload for this architecture."
        return ConfigIssue("profile.placement", type(self.model).__name__, problem, hint)


def _forms(output: object) -> object:
    return tree_map_only(Tensor, lambda values: torch.empty_like(values, device="meta"), output)


def _has_nan(tree: object) -> bool:
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return any(bool(torch.isnan(values).any()) for values in tensors)


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
            parts = decoder_parts(weights.model)
            for part in (*parts.outer, *parts.layers):
                _bring_for_its_turn(weights, part, stack)
            yield self

    def weights(self, module: str) -> dict[str, Tensor]:
        """The parameters of one module, on the device."""
        return {name: values.to(self._device) for name, values in super().weights(module).items()}


def _bring_for_its_turn(weights: PartWeights, part: str, stack: ExitStack) -> None:
    module = weights.model.get_submodule(part)
    stack.callback(module.register_forward_pre_hook(lambda *_: weights.bring(part)).remove)
    stack.callback(module.register_forward_hook(lambda *_: weights.drop(part), always_call=True).remove)


class LayerwiseReader(Reader):
    """A model that takes every batch through one stage, then through the next.

    Args:
        staged: The model.
    """

    def __init__(self, staged: LayerwiseModel) -> None:
        super().__init__(staged.model)
        self.staged = staged
        self.passage = LayerState()

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
        target: LayerwiseModel,
        sources: Mapping[Path, LayerwiseModel],
        device: torch.device,
        tokens_together: int,
        shows_progress: bool = False,
    ) -> None:
        self.target = target
        self.sources = sources
        self.device = device
        self.tokens_together = tokens_together
        self.shows_progress = shows_progress

    def run(self, readings: Iterable[ChunkBatch], means: Sequence[tuple[Path, ChannelMeans]]) -> Iterator[ChunkBatch]:
        """Take as many batches as there is memory for through all stages, then the next."""
        for wave in _waves(readings, self.tokens_together):
            self._run_together(wave, [self.sources[folder] for folder, _ in means], [its for _, its in means])
            yield from wave

    def _run_together(
        self, readings: Sequence[ChunkBatch], sources: Sequence[LayerwiseModel], means: Sequence[ChannelMeans]
    ) -> None:
        models = (self.target, *sources)
        readers = [LayerwiseReader(staged) for staged in models]
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

    batch: ModelInputs
    chunk: int
    passages: list[LayerState]

    @classmethod
    def of(cls, reading: ChunkBatch, models: Sequence[LayerwiseModel]) -> _Waiting:
        return cls(ModelInputs.of(reading.batch, models[0].model), reading.chunk, [LayerState() for _ in models])


def _waves(readings: Iterable[ChunkBatch], most: int) -> Iterator[list[ChunkBatch]]:
    """Consecutive readings of at most so many tokens together, one at least."""
    wave: list[ChunkBatch] = []
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
