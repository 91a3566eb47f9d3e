"""Means over answer tokens, channel by channel, of whatever a scorer asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torchmetrics import Metric

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.scorers.activation import Activation
from act_lightning.scorers.scorer import ActivationScorer, Observation

_MOST_NAMES = 5
_AT_ONCE = {"cpu": 1 << 17}  # values that stay in a core's cache from the difference to the sum
_AT_ONCE_ELSEWHERE = 1 << 24  # 64 MiB in float32, 128 in float64


def mean_absolute_difference(first: Tensor, second: Tensor) -> Tensor:
    """Mean over all but the last dimension of |first − second|, accumulated in float64.

    Args:
        first: Activations ``[..., channels]``, any floating dtype.
        second: Activations of the other model, of the same shape.

    Returns:
        float64 ``[channels]``.

    >>> mean_absolute_difference(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.zeros(2, 2)).tolist()
    [2.0, 2.0]
    """
    return _sums(Activation(), Observation("", first, second))[0] / first[..., 0].numel()


def _sums(scorer: ActivationScorer, seen: Observation) -> Tensor:
    """The sums of a scorer's values over all tokens, float64 ``[terms, channels]``."""
    channels = seen.target.shape[-1]
    sums = torch.zeros(scorer.terms, channels, dtype=torch.float64, device=float64_device(seen.target.device))
    for part in _parts(seen):
        values = scorer.values(part).reshape(scorer.terms, -1, channels).to(sums.device)
        for sum_of_term, of_term in zip(sums, values, strict=True):  # one by one: twice as fast as along a middle one
            sum_of_term += of_term.sum(0, dtype=torch.float64)
    return sums


def float64_device(device: torch.device) -> torch.device:
    """``device``, or the CPU where it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _parts(seen: Observation) -> Iterator[Observation]:
    """What was seen, a few tokens at a time: then memory is passed over once, and little of it is needed."""
    most = _AT_ONCE.get(seen.target.device.type, _AT_ONCE_ELSEWHERE)
    tokens = max(1, most // max(1, seen.target[:1].numel()))
    for start in range(0, len(seen.target), tokens):
        these = slice(start, start + tokens)
        source, swapped = (None if one is None else one[these] for one in (seen.source, seen.swapped))
        yield replace(seen, target=seen.target[these], source=source, swapped=swapped)


class ChannelMeans(Metric):
    """The scores of every channel: means over all answer tokens of all samples, on any number of processes.

    A module with several outputs per token (a norm inside each attention head) is averaged over these as well.

    Args:
        inventory: The channels of the target.
        scorer: What is averaged.
        partners: The source's number of each channel of the target, −1 where it lacks it, int64 ``[count]`` by
            module; by default all are numbered alike. What has no partner counts as equal in both models.
        chunks: Number of chunks of samples for each of which means are kept beside those of all; 0 for none.

    Attributes:
        total: Sums over tokens, float64 ``[terms, channels]``.
        count: Number of values added up, by module, int64 ``[modules]``.
        chunk_total: The same for each chunk, ``[chunks, terms, channels]``.
        chunk_count: The same for each chunk, ``[chunks, modules]``.
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    chunk_total: Tensor
    chunk_count: Tensor

    def __init__(
        self,
        inventory: ChannelInventory,
        scorer: ActivationScorer,
        partners: Mapping[str, Tensor] | None = None,
        chunks: int = 0,
    ) -> None:
        super().__init__()
        self.scorer = scorer
        self._partners = dict(partners or {})
        self._spans = {module.name: (i, span) for i, (module, span) in enumerate(inventory.spans())}
        sums, counts = (scorer.terms, inventory.total), len(self._spans)
        self.add_state("total", torch.zeros(sums, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(counts, dtype=torch.int64), dist_reduce_fx="sum")
        self.chunks = chunks
        if chunks:
            self.add_state("chunk_total", torch.zeros(chunks, *sums, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("chunk_count", torch.zeros(chunks, counts, dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def modules_observed(self) -> list[str]:
        """The names of the modules that are averaged, in order."""
        return list(self._spans)

    def update(
        self,
        module: str,
        target: Tensor,
        source: Tensor | None = None,
        swapped: Tensor | None = None,
        chunk: int = 0,
    ) -> None:
        """Add what one module gives at some answer tokens, each ``[tokens, ..., channels]``.

        Args:
            module: The module's name.
            target: Its output in the target.
            source: Its output in the source, if the scorer asks for it.
            swapped: Its output in the target with the source's weights, if the scorer asks for it.
            chunk: The number of the chunk of samples that the tokens are of.
        """
        number, span = self._spans[module]
        seen = Observation(module, target, *(self._in_order(module, target, other) for other in (source, swapped)))
        sums, count = _sums(self.scorer, seen).to(self.total.device), target[..., 0].numel()
        self.total[:, span] += sums
        self.count[number] += count
        if self.chunks:
            self.chunk_total[chunk, :, span] += sums
            self.chunk_count[chunk, number] += count

    def _in_order(self, module: str, target: Tensor, other: Tensor | None) -> Tensor | None:
        """``other`` in the order of the target's channels, and the target itself where there is no partner."""
        if other is None or module not in self._partners:
            return other
        partners = self._partners[module].to(other.device)
        return torch.where(partners >= 0, other[..., partners.clamp(min=0)], target)

    def compute(self) -> Tensor:
        """The scores, float32 ``[channels]``.

        Raises:
            ActError: If a module gave no output at any answer token.
        """
        return self._finished(self.total, self.count)

    def compute_chunks(self) -> Tensor:
        """The scores that each chunk of samples gives by itself, float32 ``[chunks, channels]``.

        They must have been added up over processes: call it within ``sync_context``.

        Raises:
            ActError: If a module gave no output at any answer token of a chunk.
        """
        both = zip(self.chunk_total, self.chunk_count, strict=True)
        return torch.stack([self._finished(total, count) for total, count in both])

    def _finished(self, total: Tensor, count: Tensor) -> Tensor:
        silent = [name for name, (number, _) in self._spans.items() if not count[number]]
        if silent:
            problem = "every module with parameters must take part in the forward pass"
            hint = "Its channels cannot be scored: use a model without unused modules."
            raise ActError(ConfigIssue("model", ", ".join(silent[:_MOST_NAMES]), problem, hint))
        scores = torch.empty_like(total[0])
        for number, span in self._spans.values():
            scores[span] = self.scorer.finish(total[:, span] / count[number])
        return scores.float()


class MeanAbsoluteDifference(ChannelMeans):
    """Δa_i of every channel, the paper's score: means of the absolute difference of the activations of two models.

    Args:
        inventory: The channels of the first model.
        partners: The second model's number of each channel of the first; see :class:`ChannelMeans`.
    """

    def __init__(self, inventory: ChannelInventory, partners: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(inventory, Activation(), partners)
