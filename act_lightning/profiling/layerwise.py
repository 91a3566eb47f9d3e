"""A model run one stage at a time, with its own forward code, through any number of micro-batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import PreTrainedModel

from act_lightning.architecture import decoder_parts, modules_with_parameters
from act_lightning.console import progress_bar
from act_lightning.data.batches import to_device, to_host
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.profiling.channel_means import ChannelMeans
from act_lightning.profiling.offload import PartWeights
from act_lightning.profiling.outputs import owner_of
from act_lightning.profiling.pair import Batch, ChunkBatch, ModelInputs, Pair, Reader, compare


class Call(NamedTuple):
    """One call of a part in a forward pass: the part's name, and how often it was called before."""

    part: str
    number: int


@dataclass
class LayerState:
    """How far one micro-batch has come in one model.

    Attributes:
        outputs: The outputs of the parts of the last stage, in the host's memory.
        shapes: Those of the parts of earlier stages, on the meta device.
    """

    outputs: dict[Call, Any] = field(default_factory=dict)
    shapes: dict[Call, Any] = field(default_factory=dict)


class _EndOfStage(Exception):
    """Ends a forward pass when its stage is over."""


class LayerwiseModel:
    """A causal language model whose stages are run one by one; a context manager that leaves the model as it was.

    The first stage is what comes before the layers, each layer is one, and the last is what comes after. In every stage
    the whole forward pass is called: parts of earlier stages return what they returned then (or NaN of that shape, if
    the stage was not the last one), and the pass ends when the stage's own part is done.

    Attributes:
        stages: Number of stages: the layers and two.
        modules: The modules of the model by name.
    """

    def __init__(self, weights: PartWeights, device: torch.device) -> None:
        self.model: PreTrainedModel = weights.model
        self.modules = dict(weights.model.named_modules())
        self._weights, self._device = weights, device
        self._parts = decoder_parts(self.model)
        self._layer_stage = {name: number for number, name in enumerate(self._parts.layers, start=1)}
        self.stages = len(self._layer_stage) + 2
        self._stage_of: dict[str, int] = {}  # the stage in which each part was called first
        self._stage, self._state, self._outputs = 0, LayerState(), dict[Call, Any]()
        self._calls: Counter[str] = Counter()
        self._loaded: list[str] = []
        self._instance_forwards: dict[str, Callable[..., Any] | None] = {}
        self._is_first_batch = True

    def __enter__(self) -> LayerwiseModel:
        """Wrap the ``forward`` of every part."""
        for name in (*self._parts.outer, *self._parts.layers):
            module = self.model.get_submodule(name)
            self._instance_forwards[name] = vars(module).get("forward")
            module.forward = partial(self._call, name, module.forward)
        self._weights.prefetch(self._parts.outer[:1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the parts their own ``forward`` back."""
        for name, forward in self._instance_forwards.items():
            module = self.model.get_submodule(name)
            del module.forward
            if forward is not None:
                module.forward = forward
        self._instance_forwards.clear()
        self._weights.close()

    @contextmanager
    def at(self, stage: int, backward: bool = False) -> Iterator[None]:
        """Hold the weights of a stage, numbered from 0, and prefetch the next, or the one before it."""
        self._stage, self._is_first_batch = stage, True
        layers = self._parts.layers
        try:
            if 0 < stage < self.stages - 1:
                self._load(layers[stage - 1])
            elif backward:  # whoever computes a loss asks for the head's weights before the head is called
                for part in self._pending_outer():
                    self._load(part)
            if not backward:
                self._weights.prefetch([layers[stage]] if stage < len(layers) else self._pending_outer())
            elif stage > 1:
                self._weights.prefetch([layers[stage - 2]])
            yield
        finally:
            for part in self._loaded:
                self._weights.unload(part)
            self._loaded.clear()

    def stage_modules(self) -> list[str]:
        """The modules with parameters that may run in the present stage, those of its layer first."""
        layer = self._parts.layers[self._stage - 1 : self._stage] if self._stage else ()
        return [name for part in (*layer, *self._pending_outer()) for name in modules_with_parameters(self.model, part)]

    def load_outer(self, module: str) -> None:
        """Load a module outside the layers whose weights are read before it is called."""
        if module in self._parts.outer:
            self._load(module)

    def advance(self, state: LayerState, forward: Callable[[], object]) -> None:
        """Take a micro-batch through the present stage, and update how far it has come.

        Args:
            state: How far it has come.
            forward: Calls the model with the micro-batch, on the device, the same in every stage.

        Raises:
            ActError: If the architecture is not a chain of layers.
        """
        self._state, self._outputs = state, {}
        self._calls.clear()
        try:
            forward()
        except _EndOfStage:
            pass
        else:
            if self._stage < self.stages - 1:
                raise ActError(self._chain_issue(self._parts.layers[max(self._stage - 1, 0)], "is not called"))
        for call, output in state.outputs.items():
            state.shapes[call] = tree_map_only(Tensor, lambda values: torch.empty_like(values, device="meta"), output)
        state.outputs = self._outputs
        self._state, self._outputs, self._is_first_batch = LayerState(), {}, False

    def go_back(self, state: LayerState, gradients: Mapping[Call, Any], forward: Callable[[], None]) -> dict[Call, Any]:
        """Take a micro-batch through the present stage again, and gradients back through it to the weights.

        Args:
            state: How far the micro-batch had come before this stage.
            gradients: Those of the stage's outputs; none in the last stage, where ``forward`` takes them itself.
            forward: As for :meth:`advance`.

        Returns:
            The gradients of the outputs in ``state``, in the host's memory, ``None`` for what has none.
        """
        leaves = {call: tree_map_only(Tensor, self._leaf, output) for call, output in state.outputs.items()}
        self._state, self._outputs = LayerState(leaves, state.shapes), {}
        self._calls.clear()
        with torch.enable_grad():
            with suppress(_EndOfStage):
                forward()
            outputs, known = list[Tensor](), list[Tensor]()
            for call, tree in self._outputs.items():
                for output, gradient in zip(tree_leaves(tree), tree_leaves(gradients[call]), strict=True):
                    if gradient is not None and output.requires_grad:
                        outputs.append(output)
                        known.append(to_device(gradient, output.device))
            if outputs:
                torch.autograd.backward(outputs, known)
        self._state, self._outputs, self._is_first_batch = LayerState(), {}, False
        return {call: tree_map_only(Tensor, _gradient_on_host, output) for call, output in leaves.items()}

    def _leaf(self, values: Tensor) -> Tensor:
        return to_device(values, self._device).detach().requires_grad_(values.is_floating_point())

    def _call(self, part: str, forward: Callable[..., Any], *args: object, **kwargs: object) -> object:
        """Stand in for the ``forward`` of a part."""
        call = Call(part, self._calls[part])
        self._calls[part] += 1
        if call in self._state.outputs:
            return tree_map_only(Tensor, partial(to_device, device=self._device), self._state.outputs[call])
        if call in self._state.shapes:
            return tree_map_only(Tensor, partial(_nan_like, device=self._device), self._state.shapes[call])
        stage = self._layer_stage.get(part)
        if stage == 1 and self._stage == 0:
            raise _EndOfStage
        if self._stage_of.setdefault(part, self._stage) != self._stage or stage not in (None, self._stage):
            raise ActError(self._chain_issue(part, "is called out of turn"))
        if stage is None:
            self._load(part)
        if self._is_first_batch and _has_nan((args, kwargs)) and not _has_nan(self._state.outputs):
            raise ActError(self._chain_issue(part, "reads what was computed long before"))
        output = forward(*args, **kwargs)
        if self._stage < self.stages - 1:  # nothing follows the last, whose logits are larger than all else
            # on the way back they are only what the backward pass begins with
            self._outputs[call] = output if torch.is_grad_enabled() else tree_map_only(Tensor, to_host, output)
        if stage is not None:
            raise _EndOfStage
        return output

    def _pending_outer(self) -> list[str]:
        """Parts outside the layers that no earlier stage has called."""
        return [part for part in self._parts.outer if self._stage_of.get(part, self._stage) == self._stage]

    def _load(self, part: str) -> None:
        self._weights.load(part)
        self._loaded.append(part)

    def _chain_issue(self, part: str, reason: str) -> ConfigIssue:
        problem = f"must have layers that follow one another, each on the output of the last, and {part} {reason}"
        hint = "Choose profile.placement: resident or offload for this architecture."
        return ConfigIssue("profile.placement", type(self.model).__name__, problem, hint)


def _nan_like(shape: Tensor, device: torch.device) -> Tensor:
    """NaN (of integers, 0) in place of an output that is no longer kept, and that no later stage should read."""
    value = float("nan") if shape.is_floating_point() else 0
    return torch.full((), value, dtype=shape.dtype, device=device).expand(shape.shape)


def _gradient_on_host(leaf: Tensor) -> Tensor | None:
    return None if leaf.grad is None else to_host(leaf.grad)


def _has_nan(tree: object) -> bool:
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    found = [torch.isnan(values).any() for values in tensors]
    return bool(found) and bool(torch.stack(found).any())


class LayerwiseReader(Reader):
    """A model that takes one batch through one stage at each call, and keeps how far the batch has come."""

    def __init__(self, layerwise: LayerwiseModel) -> None:
        super().__init__(layerwise.model)
        self.layerwise = layerwise
        self._state = LayerState()

    def read(self, inputs: Batch) -> None:
        """Take the batch through the present stage."""
        self.layerwise.advance(self._state, partial(super().read, inputs))

    def weights(self, module: str) -> dict[str, Tensor]:
        """The parameters of one module of the present stage."""
        self.layerwise.load_outer(module)
        return super().weights(module)


def group_batches(batches: Iterable[ChunkBatch], most_tokens: int) -> Iterator[list[ChunkBatch]]:
    """Successive batches that have at most so many tokens together, padding included, but at least one batch."""
    group: list[ChunkBatch] = []
    tokens = 0
    for batch in batches:
        size = batch.batch["input_ids"].numel()
        if group and tokens + size > most_tokens:
            yield group
            group, tokens = [], 0
        group.append(batch)
        tokens += size
    if group:
        yield group


class LayerwisePair(Pair):
    """Many batches go through one stage of all models, then through the next: only one stage's weights are loaded.

    Args:
        target: The model to be improved, entered as a context manager.
        sources: Its siblings by folder, entered as well.
        device: Where they compute.
        tokens_per_pass: How many tokens, padding included, go from stage to stage together. Between stages the host's
            memory keeps a hidden state for each of them and each model.
    """

    def __init__(
        self,
        target: LayerwiseModel,
        sources: Mapping[Path, LayerwiseModel],
        device: torch.device,
        tokens_per_pass: int,
        shows_progress: bool = False,
    ) -> None:
        self.target = target
        self.sources = sources
        self.device = device
        self.tokens_per_pass = tokens_per_pass
        self.shows_progress = shows_progress

    def run(self, batches: Iterable[ChunkBatch], means: Sequence[tuple[Path, ChannelMeans]]) -> Iterator[ChunkBatch]:
        """Take as many batches as there is memory for through all stages, then the next."""
        for group in group_batches(batches, self.tokens_per_pass):
            self._run_stages(group, means)
            yield from group

    def _run_stages(self, batches: Sequence[ChunkBatch], means: Sequence[tuple[Path, ChannelMeans]]) -> None:
        models = [self.target, *(self.sources[folder] for folder, _ in means)]
        metrics = [metric for _, metric in means]
        waiting = []
        for batch, chunk in batches:
            inputs = ModelInputs.of(batch, self.target.model)
            if inputs.answers.tokens:
                inputs = inputs.to(self.device)  # once for all stages
                waiting.append((inputs, chunk, [LayerwiseReader(model) for model in models]))
        stages = range(self.target.stages if waiting else 0)
        for stage in progress_bar(stages, desc="layers", leave=False, disable=not self.shows_progress):
            with ExitStack() as stack:
                for model in dict.fromkeys(models):
                    stack.enter_context(model.at(stage))
                for inputs, chunk, readers in waiting:
                    running = set(self.target.stage_modules())
                    names = [name for name in metrics[0].module_names if owner_of(name, self.target.modules) in running]
                    compare(readers[0], readers[1:], inputs, metrics, chunk, names)
