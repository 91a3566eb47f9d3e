"""Scores from gradients: what a channel's own change does to the answer loss, summed as backward passes give it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import lightning as L
import torch
from torch import Tensor
from tqdm.auto import tqdm

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.masks import top_by_parameters
from act_lightning.profiling.channel_means import float64_device
from act_lightning.profiling.gradients import InterpolatedModel, each_gradient, interpolate
from act_lightning.profiling.measurement import Measurement, save
from act_lightning.profiling.pair import ChunkBatch
from act_lightning.profiling.samples import AbilitySamples, MeasuredScores, Sampling
from act_lightning.profiling.target import Target
from act_lightning.scorers.attribution import Attribution
from act_lightning.training.loss import answer_loss

_BLOCK = 4 * 1024 * 1024  # elements of a gradient that are multiplied at once


@dataclass(frozen=True)
class LossChange:
    """What the source's weights of each channel alone would do to the loss, to first order.

    Attributes:
        total: Σ over answer tokens of ∂(−log p)/∂θ ⊙ (θ_abl − θ_trg), float64 ``[chunks, channels]``.
        tokens: Answer tokens, float64 ``[chunks]``.
    """

    total: Tensor
    tokens: Tensor

    def __add__(self, other: LossChange) -> LossChange:
        """Over the tokens of both."""
        return LossChange(self.total + other.total, self.tokens + other.tokens)

    def mean(self) -> Tensor:
        """The change of the mean loss over all tokens, float64 ``[channels]``."""
        return self.total.sum(0) / self.tokens.sum()

    def chunk_means(self) -> Tensor:
        """The change of the mean loss of each chunk, float64 ``[chunks, channels]``."""
        return self.total / self.tokens.unsqueeze(1)


def measure_gradients(
    due: Sequence[Measurement], target: Target, scorer: Attribution, sampling: Sampling, trainer: L.Trainer
) -> None:
    """Measure one source after the other, and write the scores of each ability when they are there.

    Raises:
        ActError: If a score is NaN or infinite, or chunks are asked for in two rounds.
    """
    if scorer.rounds > 1 and sampling.kept:
        problem = f"cannot be kept of a ranking that was made in {scorer.rounds} rounds"
        raise ActError(ConfigIssue("profile.chunks", sampling.kept, problem, "Leave chunks and stop_when_stable out."))
    scores, channels = GradientScores(scorer, sampling, target, trainer), target.inventory()
    with scores.ready() as line:
        for folder in dict.fromkeys(one.folder for one in due):
            line.read(folder)
            for one in due:
                if one.folder == folder:
                    save(one, channels, scores.measure(line, one), trainer)
                    trainer.strategy.barrier("scores written")


class GradientScores:
    """Measures attribution on every process's share of the samples.

    Args:
        scorer: What is measured.
        sampling: In which chunks samples are read, and when to stop.
        target: The target.
        trainer: Its processes and devices are used.
    """

    def __init__(self, scorer: Attribution, sampling: Sampling, target: Target, trainer: L.Trainer) -> None:
        self._scorer = scorer
        self._sampling = sampling
        self._target = target
        self._trainer = trainer
        self._channels = target.inventory()
        self._sizes = self._channels.sizes()
        self._kept: dict[tuple[str, float], Tensor] = {}  # what is to be kept is measured once for all abilities

    def ready(self) -> AbstractContextManager[InterpolatedModel]:
        """The model that gradients are taken of; give it a source before measuring."""
        return interpolate(self._target, self._channels, self._trainer.strategy.root_device)

    def measure(self, line: InterpolatedModel, one: Measurement) -> MeasuredScores:
        """The scores of one ability, on all processes alike.

        Args:
            line: With the measurement's source.
            one: What is measured.
        """
        first = self._round(line, one, None)
        if self._scorer.rounds == 1:
            return first
        allowed = torch.ones(self._channels.total, dtype=torch.bool)
        moved = top_by_parameters(first.scores, self._scorer.first_share, allowed, self._channels)
        second = self._round(line, one, moved)
        return replace(second, scores=self._scorer.in_two_rounds(first.scores, second.scores, moved))

    def _round(self, line: InterpolatedModel, one: Measurement, moved: Tensor | None) -> MeasuredScores:
        """Gradients at every α, on more and more samples until the mask is stable."""
        elements = None if moved is None else self._channels.elements(moved)
        sampling, changes, rises, found = self._sampling, dict[float, LossChange](), [], MeasuredScores(torch.empty(0))
        for part in sampling.parts(len(one.samples.samples)):
            for alpha in self._scorer.alphas:
                line.place(alpha, elements)
                change = self._change(line, [one.samples], one.label, part, sampling.kept)
                changes[alpha] = changes[alpha] + change if alpha in changes else change
                if one.kept and part.start == 0:
                    rises.append(self._rise(line, one, alpha, moved is None))
            found = self._finished(list(changes.values()), torch.stack(rises).mean(0) if rises else None, part.stop)
            found = sampling.judged(one.source, one.samples, self._channels, found)
            if sampling.is_stable(found.overlap):
                break
        return found

    def _finished(self, changes: Sequence[LossChange], rise: Tensor | None, used: int) -> MeasuredScores:
        """Scores from what was added up so far."""
        scores = self._scorer.finish(-torch.stack([one.mean() for one in changes]).mean(0), rise, self._sizes).float()
        if not self._sampling.kept:
            return MeasuredScores(scores, used=used)
        by_chunk = -torch.stack([one.chunk_means() for one in changes]).mean(0)
        chunks = torch.stack([self._scorer.finish(falls, rise, self._sizes).float() for falls in by_chunk])
        return MeasuredScores(scores, chunks, used)

    def _rise(self, line: InterpolatedModel, one: Measurement, alpha: float, is_shared: bool) -> Tensor:
        """By how much the loss of what is to be kept rises, float64 ``[channels]``."""
        key = one.source.label, alpha
        if not is_shared or key not in self._kept:
            rise = self._change(line, list(one.kept.values()), f"what {one.source.label} is not to harm").mean()
            if not is_shared:
                return rise
            self._kept[key] = rise
        return self._kept[key]

    def _change(
        self,
        line: InterpolatedModel,
        sets: Sequence[AbilitySamples],
        label: str,
        part: range | None = None,
        chunks: int = 0,
    ) -> LossChange:
        """Over the samples of some sets, or a part of these, on all processes."""
        rank, world = self._trainer.global_rank, self._trainer.world_size
        config, budget = line.model.config, self._scorer.tokens_per_batch
        readings = [one for its in sets for one in its.readings(config, budget, rank, world, chunks, part)]
        shown = tqdm(readings, desc=f"attributing {label}", disable=not self._trainer.is_global_zero)
        mine = loss_change(line, self._channels, shown, max(1, chunks))
        total, tokens = (self._trainer.strategy.reduce(part, reduce_op="sum") for part in (mine.total, mine.tokens))
        return LossChange(total.cpu(), tokens.cpu())


def loss_change(
    line: InterpolatedModel, channels: ChannelInventory, readings: Iterable[ChunkBatch], chunks: int = 1
) -> LossChange:
    """Sum over batches, with one backward pass for each, and one parameter's gradient in memory at a time.

    Args:
        line: The model, placed where gradients are wanted, and the task vector.
        channels: The channels of the target.
        readings: The batches.
        chunks: Number of chunks that they are of.
    """
    device = line.model.device
    kept_on = float64_device(device)
    total = torch.zeros(chunks, channels.total, dtype=torch.float64, device=kept_on)
    tokens = torch.zeros(chunks, dtype=torch.float64, device=kept_on)
    owners: dict[str, list[tuple[slice, int]]] = {}
    for module, span in channels.spans():
        for owned in module.owned:
            owners.setdefault(owned.name, []).append((span, owned.dim))
    now = 0  # the chunk of the batch that is read

    def add(name: str, gradient: Tensor) -> None:
        _add_products(total[now], owners[name], gradient, line.changes[name])

    with each_gradient(line.model, add):
        for batch, now in readings:
            loss, count = answer_loss(line.model, {key: values.to(device) for key, values in batch.items()})
            loss.backward()
            tokens[now] += count
    return LossChange(total, tokens)


def _add_products(sums: Tensor, owners: Sequence[tuple[slice, int]], gradient: Tensor, change: Tensor) -> None:
    """Add gradient ⊙ change of a parameter to the channels that own its rows, and to those that own its columns."""
    for rows in torch.arange(len(gradient)).split(max(1, _BLOCK // max(1, gradient[0].numel()))):
        place = slice(int(rows[0]), int(rows[-1]) + 1)
        product = (gradient[place].float() * change[place].float()).reshape(len(rows), -1)
        for span, dim in owners:
            into = sums[span][place] if dim == 0 else sums[span]
            into += product.sum(1 - dim, dtype=torch.float64).to(sums.device)
