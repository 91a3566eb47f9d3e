"""Scores from gradients, one parameter's gradient in memory at a time: attribution, and sums for Fisher information."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_lightning.architecture import DecoderSizes, decoder_parts
from act_lightning.channels import ElementSelection, OwnedParameter, add_to_channels, as_matrix, matrix_shape
from act_lightning.checkpoints.compatibility import VocabularyMatch, match_vocabularies
from act_lightning.checkpoints.reader import CheckpointReader, load_on_device
from act_lightning.checkpoints.weight_delta import Rows, row_deltas
from act_lightning.console import progress_bar
from act_lightning.data.batches import batch_to_device, collate, to_device
from act_lightning.data.labels import Sample
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.masks import top_by_parameters
from act_lightning.profiling.channel_means import float64_device
from act_lightning.profiling.layerwise import Call, LayerState, LayerwiseModel, group_batches
from act_lightning.profiling.measurement import Measurement, Target, save
from act_lightning.profiling.memory import PairSettings
from act_lightning.profiling.offload import DiskWeights
from act_lightning.profiling.pair import ChunkBatch
from act_lightning.profiling.placement import choose_placement, host_memory_share, memory_for_states
from act_lightning.profiling.samples import AbilitySamples, MeasuredScores, Sampling
from act_lightning.scorers.attribution import Attribution
from act_lightning.training.loss import answer_logits, answer_loss

_WEIGHT_BLOCK = 16 * 1024 * 1024  # elements of weights that are in memory in float32 at once
_PRODUCT_BLOCK = 4 * 1024 * 1024  # elements of a gradient that are multiplied at once


def measure_gradients(
    pending: Sequence[Measurement],
    target: Target,
    scorer: Attribution,
    sampling: Sampling,
    settings: PairSettings,
    trainer: L.Trainer,
) -> None:
    """Measure one source after the other, and write the scores of each ability when they are there.

    Raises:
        ActError: If a score is NaN or infinite, or chunks are asked for in two rounds.
    """
    if scorer.rounds > 1 and sampling.chunk_count:
        problem = f"cannot be kept of a ranking that was made in {scorer.rounds} rounds"
        hint = "Leave chunks and stop_when_stable out."
        raise ActError(ConfigIssue("profile.chunks", sampling.chunk_count, problem, hint))
    if not pending:
        return
    device, skeleton, placement = trainer.strategy.root_device, target.skeleton(), settings.placement
    if placement == "auto" and target.model is None:
        placement = choose_placement(target, skeleton, 1, scorer.tokens_per_batch, trainer)
    kind, model = AttributionPass, skeleton
    if placement == "layerwise":
        kind = LayerwiseAttributionPass
    elif target.model is None:
        assert target.folder is not None
        model = load_on_device(target.folder, target.dtype, device)
    else:
        model = copy.deepcopy(target.model)
        nn.Module.to(model, device)
        model.train(False)
    attribution = kind(model, target, scorer, sampling, trainer)
    for folder in dict.fromkeys(measurement.folder for measurement in pending):
        attribution.read_source(folder)
        for measurement in pending:
            if measurement.folder == folder:
                save(measurement, attribution.channels, attribution.measure(measurement), trainer)
                trainer.strategy.barrier("scores written")


class AttributionPass:
    """Measures attribution at θ_trg + α (θ_abl − θ_trg), with the samples shared out over the processes.

    Beside the model it keeps the task vector, both in the precision of the comparison: as much as a pair takes. Rows of
    both models are read from disk a block at a time. Rows that the source lacks stay the target's.

    Args:
        model: A copy of the target, whose weights are changed.
        target: The original weights.
        scorer: What is measured.
        sampling: In which chunks samples are read, and when to stop.
        trainer: Its processes are used.

    Attributes:
        channels: The target's channels.
        changes: θ_abl − θ_trg by first name of the parameter, on the model's device; differences are taken in float32.
    """

    def __init__(
        self, model: PreTrainedModel, target: Target, scorer: Attribution, sampling: Sampling, trainer: L.Trainer
    ) -> None:
        self.channels = target.inventory()
        self.changes: dict[str, Tensor] = {}
        self._model, self._target, self._trainer = model, target, trainer
        self._scorer, self._sampling = scorer, sampling
        self._sizes = self.channels.sizes()
        self._rises: dict[tuple[str, float], Tensor] = {}  # by source and α: the same for all its abilities

    @torch.no_grad()
    def read_source(self, folder: Path) -> None:
        """Replace the task vector by that of another source."""
        match = match_vocabularies(self._target.folder, folder) if self._target.folder else None
        self.changes = {}
        with self._target.rows() as target, CheckpointReader(folder) as source:
            for name in self.channels.shapes:
                change = torch.empty_like(self._model.get_parameter(name), requires_grad=False)
                _fill_task_vector(change, name, target, source, match)
                self.changes[name] = change

    def measure(self, measurement: Measurement) -> MeasuredScores:
        """The scores of one ability, the same on all processes."""
        first = self._measure_round(measurement, None)
        if self._scorer.rounds == 1:
            return first
        allowed = torch.ones(self.channels.total, dtype=torch.bool)
        moved = top_by_parameters(first.scores, self._scorer.first_share, allowed, self.channels)
        second = self._measure_round(measurement, moved)
        return replace(second, scores=self._scorer.in_two_rounds(first.scores, second.scores, moved))

    def _measure_round(self, measurement: Measurement, moved: Tensor | None) -> MeasuredScores:
        """Gradients at every α, on more and more samples until the mask is stable."""
        scorer, sampling, samples = self._scorer, self._sampling, measurement.samples
        elements = None if moved is None else self.channels.elements(moved)
        changes: dict[float, tuple[Tensor, Tensor]] = {}
        rises: list[Tensor] = []
        measured = MeasuredScores(torch.empty(0))
        for numbers in sampling.rounds(len(samples.samples)):
            for alpha in scorer.alphas:
                self._move_to(alpha, elements)
                total, tokens = self._loss_change([samples], measurement.label, numbers, sampling.chunk_count)
                if alpha in changes:
                    total, tokens = changes[alpha][0] + total, changes[alpha][1] + tokens
                changes[alpha] = total, tokens
                if measurement.keep and numbers.start == 0:
                    rises.append(self._rise(measurement, alpha, moved is None))
            rise = torch.stack(rises).mean(0) if rises else None
            falls = -torch.stack([total.sum(0) / tokens.sum() for total, tokens in changes.values()]).mean(0)
            measured = MeasuredScores(scorer.finish(falls, rise, self._sizes).float(), used=numbers.stop)
            if sampling.chunk_count:
                by_chunk = [total / tokens.unsqueeze(1) for total, tokens in changes.values()]
                chunks = [scorer.finish(falls, rise, self._sizes).float() for falls in -torch.stack(by_chunk).mean(0)]
                measured = replace(measured, chunks=torch.stack(chunks))
            measured = sampling.with_overlap(measurement.source, samples, self.channels, measured)
            if measured.is_stable:
                break
        return measured

    @torch.no_grad()
    def _move_to(self, alpha: float, moved: Mapping[str, ElementSelection] | None) -> None:
        """Set the weights for α; the elements in ``moved`` take the source's values, whatever α."""
        with self._target.rows() as target:
            for name, change in self.changes.items():
                values = self._model.get_parameter(name).data
                _interpolate(values, change, alpha, moved.get(name) if moved else None, partial(target.rows, name))

    def _rise(self, measurement: Measurement, alpha: float, is_first_round: bool) -> Tensor:
        """By how much the loss on the abilities to keep rises, float64 ``[channels]``."""
        key = measurement.source.label, alpha
        if is_first_round and key in self._rises:
            return self._rises[key]
        label = f"what {measurement.source.label} is not to harm"
        total, tokens = self._loss_change(list(measurement.keep.values()), label)
        rise = total.sum(0) / tokens.sum()
        if is_first_round:
            self._rises[key] = rise
        return rise

    def _loss_change(
        self, sample_sets: Sequence[AbilitySamples], label: str, numbers: range | None = None, chunks: int = 0
    ) -> tuple[Tensor, Tensor]:
        """What the source's weights of each channel alone would do to the loss, to first order, on all processes.

        Returns:
            Σ over answer tokens of ∂(−log p)/∂θ ⊙ (θ_abl − θ_trg), float64 ``[chunks, channels]``, by one backward pass
            for each batch; and the number of answer tokens, float64 ``[chunks]``.
        """
        trainer, channels = self._trainer, self.channels
        sums_device = float64_device(trainer.strategy.root_device)
        total = torch.zeros(max(1, chunks), channels.total, dtype=torch.float64, device=sums_device)
        tokens = torch.zeros(max(1, chunks), dtype=torch.float64, device=sums_device)
        owners: dict[str, list[tuple[slice, OwnedParameter]]] = {}
        for module, span in channels.spans():
            for owned in module.owned:
                owners.setdefault(owned.name, []).append((span, owned))
        budget = self._scorer.tokens_per_batch
        batches = [
            batch
            for samples in sample_sets
            for batch in samples.batches(
                self._model.config, budget, trainer.global_rank, trainer.world_size, chunks, numbers
            )
        ]

        def add(chunk: int, name: str, gradient: Tensor) -> None:
            if name in owners:
                _add_products(total[chunk], owners[name], gradient, self.changes[name])

        with progress_bar(total=len(batches), desc=f"attributing {label}", disable=not trainer.is_global_zero) as bar:
            for chunk, count in self._gradients(batches, add):
                tokens[chunk] += count
                bar.update()
        total, tokens = (trainer.strategy.reduce(values, reduce_op="sum") for values in (total, tokens))
        return total.cpu(), tokens.cpu()

    def _gradients(
        self, batches: Sequence[ChunkBatch], use: Callable[[int, str, Tensor], None]
    ) -> Iterator[tuple[int, int]]:
        """Hand the gradients of each batch to ``use``, with its chunk; yields its chunk and number of answer tokens."""
        model, chunk = self._model, 0
        with each_gradient(model, lambda name, gradient: use(chunk, name, gradient)):
            for batch, chunk in batches:
                loss, count = answer_loss(model, batch_to_device(batch, model.device))
                loss.backward()
                yield chunk, count


class LayerwiseAttributionPass(AttributionPass):
    """The same for models of which only the largest part fits on the device: all weights are read from disk.

    Batches go through one layer after the other, then their gradients through the layers in reverse order, each of
    which computes its activations again (https://arxiv.org/abs/1604.06174). So weights of target and source are read
    twice for as many batches as the host has memory for: a hidden state for each token and layer.
    """

    @torch.no_grad()
    def read_source(self, folder: Path) -> None:
        """Remember where the source is."""
        assert self._target.folder is not None
        self._source, self._match = folder, match_vocabularies(self._target.folder, folder)

    def _move_to(self, alpha: float, moved: Mapping[str, ElementSelection] | None) -> None:
        self._alpha, self._moved = alpha, moved or {}

    def _gradients(
        self, batches: Sequence[ChunkBatch], use: Callable[[int, str, Tensor], None]
    ) -> Iterator[tuple[int, int]]:
        assert self._target.folder is not None
        device, dtype = self._trainer.strategy.root_device, self._target.dtype
        weights = InterpolatedWeights(
            self._target.folder,
            self._source,
            dtype,
            device,
            self.channels.shapes,
            self._match,
            self._alpha,
            self._moved,
        )
        self.changes = weights.changes
        layers = decoder_parts(weights.model).layers
        bytes_of_a_token = len(layers) * DecoderSizes.of(weights.model.config).hidden * dtype.itemsize
        most = max(1, memory_for_states(host_memory_share(self._trainer), device) // bytes_of_a_token)
        with LayerwiseModel(weights, device) as layerwise:
            for group in group_batches(batches, most):
                yield from self._group_gradients(layerwise, weights, group, use)

    def _group_gradients(
        self,
        layerwise: LayerwiseModel,
        weights: InterpolatedWeights,
        group: Sequence[ChunkBatch],
        use: Callable[[int, str, Tensor], None],
    ) -> Iterator[tuple[int, int]]:
        """Take batches through all stages and back."""
        model, last = layerwise.model, layerwise.stages - 1
        inputs_of = [batch_to_device(batch, self._trainer.strategy.root_device) for batch, _ in group]
        states = [[LayerState()] for _ in group]
        for stage in range(last):
            with layerwise.at(stage), torch.no_grad():
                for inputs, saved in zip(inputs_of, states, strict=True):
                    state = LayerState(dict(saved[-1].outputs), dict(saved[-1].shapes))
                    layerwise.advance(state, partial(answer_logits, model, inputs))
                    saved.append(state)
        gradients: list[Mapping[Call, Any]] = [{} for _ in group]
        for stage in range(last, -1, -1):
            with layerwise.at(stage, backward=True):
                for number, (_, chunk) in enumerate(group):
                    counts = list[int]()

                    def forward(inputs: Mapping[str, Any] = inputs_of[number], counts: list[int] = counts) -> None:
                        loss, count = answer_loss(model, inputs)
                        counts.append(count)
                        loss.backward()

                    weights.use = partial(use, chunk)
                    gradients[number] = layerwise.go_back(states[number].pop(), gradients[number], forward)
                    if stage == last:
                        yield chunk, counts[0]


class InterpolatedWeights(DiskWeights):
    """θ_trg + α (θ_abl − θ_trg), of which a part at a time is in memory, with the part of the task vector.

    Args:
        target: The target's folder.
        source: The source's folder.
        dtype: Precision of the comparison.
        device: Where parts are needed.
        shapes: The shapes of the parameters that can change, by their first names.
        match: Which rows of the source belong to the target's; ``None`` if every token has the same row in both.
        alpha: α.
        moved: Elements that take the source's values, whatever α.

    Attributes:
        changes: θ_abl − θ_trg of parts that are loaded, by first name of the parameter.
        use: Receives the first name of a parameter that can change, and its gradient, in a backward pass.
    """

    use: Callable[[str, Tensor], None]

    def __init__(
        self,
        target: Path,
        source: Path,
        dtype: torch.dtype,
        device: torch.device,
        shapes: Mapping[str, torch.Size],
        match: VocabularyMatch | None,
        alpha: float,
        moved: Mapping[str, ElementSelection],
    ) -> None:
        super().__init__(target, dtype, device)
        self._source, self._shapes, self._match = CheckpointReader(source), shapes, match
        self._alpha, self._moved = alpha, moved
        self._read_changes: dict[str, Tensor] = {}
        self.changes: dict[str, Tensor] = {}
        firsts: dict[int, str] = {}
        named = self.model.named_parameters(remove_duplicate=False)
        self._first = {name: firsts.setdefault(id(parameter), name) for name, parameter in named}

    def _read_parameter(self, name: str) -> Tensor:
        """Interpolate, and keep the task vector until the part is loaded."""
        first = self._first[name]
        if first not in self._shapes:
            return super()._read_parameter(name)
        values = torch.empty(self._shapes[first], dtype=self._dtype)
        change = torch.empty_like(values)
        _fill_task_vector(change, first, self._reader, self._source, self._match)
        _interpolate(values, change, self._alpha, self._moved.get(first), partial(self._reader.rows, first))
        self._read_changes[name] = change.pin_memory() if self._device.type == "cuda" else change
        return values

    def load(self, part: str) -> None:
        """As :class:`DiskWeights`, with gradients for the parameters that can change."""
        if part in self._placeholders:
            return
        super().load(part)
        for name in self._placeholders[part]:
            first = self._first[name]
            if first not in self._shapes:
                continue
            self.changes[first] = to_device(self._read_changes.pop(name), self._device)
            parameter = self.model.get_parameter(name).requires_grad_(True)
            parameter.register_post_accumulate_grad_hook(partial(self._hand_over, first))

    def _hand_over(self, first: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad, None
        self.use(first, gradient)

    def unload(self, part: str) -> None:
        """As :class:`DiskWeights`."""
        for name in self._placeholders.get(part, {}):
            self.changes.pop(self._first[name], None)
        super().unload(part)

    def close(self) -> None:
        """As :class:`DiskWeights`."""
        super().close()
        self._source.close()


def _fill_task_vector(
    change: Tensor, name: str, target: Rows, source: CheckpointReader, match: VocabularyMatch | None
) -> None:
    """Write θ_abl − θ_trg of the parameter ``name`` into ``change``, which has its shape; taken in float32."""
    for rows, values in row_deltas(name, change.shape, target, source, match):
        as_matrix(change)[rows] = values.to(change.device, change.dtype)
    source.release(name)


def _interpolate(
    values: Tensor, change: Tensor, alpha: float, moved: ElementSelection | None, original: Callable[[Tensor], Tensor]
) -> None:
    """Write θ_trg + α (θ_abl − θ_trg) into ``values``; elements in ``moved`` take the source's values, whatever α.

    ``original`` gives rows of the target's parameter, seen as a matrix, by their numbers.
    """
    step = change.mul(alpha)
    if moved is not None:
        step = torch.where(moved.expand(change.shape).to(change.device), change, step)
    values, step = as_matrix(values), as_matrix(step)
    for index in torch.arange(len(values)).split(max(1, _WEIGHT_BLOCK // max(1, step[0].numel()))):
        rows = slice(int(index[0]), int(index[-1]) + 1)
        exact = original(index).to(values.device).float()
        values[rows] = exact.add_(step[rows].float()).to(values.dtype)


def _add_products(
    sums: Tensor, owners: Sequence[tuple[slice, OwnedParameter]], gradient: Tensor, change: Tensor
) -> None:
    """Add gradient ⊙ change of a parameter to the channels that own its rows, and to those that own its columns."""
    shape, gradient, change = change.shape, gradient.reshape(matrix_shape(change.shape)), as_matrix(change)
    step = max(1, _PRODUCT_BLOCK // max(1, gradient[0].numel()))
    for start in range(0, len(gradient), step):
        rows = slice(start, start + step)
        product = gradient[rows].float() * change[rows].float().view(gradient[rows].shape)
        for span, owned in owners:
            add_to_channels(sums[span], owned, shape, start, product)


@contextmanager
def each_gradient(model: nn.Module, use: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Let every backward pass in the block hand the gradient of each parameter to ``use``, and keep none.

    Args:
        model: The model. Frozen parameters take part. At the end, ``grad`` and ``requires_grad`` are as they were.
        use: Receives the first name of a parameter and its gradient, which sums over all uses of a tied parameter.
    """
    parameters = dict(model.named_parameters())
    before = {name: (parameter.requires_grad, parameter.grad) for name, parameter in parameters.items()}

    def hand_over(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad, None
        use(name, gradient)

    try:
        with ExitStack() as stack, torch.enable_grad():
            for name, parameter in parameters.items():
                parameter.requires_grad_(True).grad = None
                stack.callback(parameter.register_post_accumulate_grad_hook(partial(hand_over, name)).remove)
            yield
    finally:
        for name, (required, gradient) in before.items():
            parameters[name].requires_grad_(required).grad = gradient


def summed_squared_gradients(model: PreTrainedModel, samples: Iterable[Sample]) -> dict[str, Tensor]:
    """Σ_n (∂ log p(answer_n | prompt_n) / ∂θ)², the gradient of each sample squared before it is added.

    Divided by the number of samples this is the diagonal of the empirical Fisher information (equation 2 of Matena and
    Raffel 2022, https://arxiv.org/abs/2111.09832, with the labels for the expectation over the model's own answers).
    Beside the model it takes a float32 number for each parameter and the gradient of one parameter at a time.

    Args:
        model: A causal language model; it is left as it was, gradients included.
        samples: Samples with answer tokens.

    Returns:
        float32, by parameter, of its shape, on its device; a tied parameter under its first name.
    """
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in model.named_parameters()}

    def add_square(name: str, gradient: Tensor) -> None:
        exact = gradient.float()
        sums[name].addcmul_(exact, exact)

    with each_gradient(model, add_square):
        for sample in samples:
            loss, _ = answer_loss(model, batch_to_device(collate([sample], 0), model.device))
            loss.backward()
    return sums
