"""Means over answer tokens, channel by channel, of the values that a scorer defines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torchmetrics import Metric

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.scorers.scorer import ActivationScorer, Observation

_MOST_NAMES = 5
_CPU_BLOCK = 1 << 17  # values that stay in a core's cache from the difference to the sum
_DEVICE_BLOCK = 1 << 24  # 64 MiB in float32, 128 in float64


def float64_device(device: torch.device) -> torch.device:
    """Where float64 sums are kept: on ``device``, or on the CPU for MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def token_sums(scorer: ActivationScorer, observation: Observation) -> Tensor:
    """Sums of a scorer's values over all tokens, accumulated in float64.

    Tokens are read in blocks, so that every output is read from memory once, and little memory is needed.

    Returns:
        float64 ``[terms, channels]``.

    >>> from act_lightning.scorers import Activation
    >>> outputs = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    >>> token_sums(Activation(), Observation("", outputs, torch.zeros(2, 2))).tolist()
    [[4.0, 4.0]]
    """
    target, channels = observation.target, observation.target.shape[-1]
    block = _CPU_BLOCK if target.device.type == "cpu" else _DEVICE_BLOCK
    step = max(1, block // max(1, target[:1].numel()))
    sums = torch.zeros(scorer.terms, channels, dtype=torch.float64, device=float64_device(target.device))
    for start in range(0, len(target), step):
        tokens = slice(start, start + step)
        source, source_weight_output = (
            None if output is None else output[tokens]
            for output in (observation.source, observation.source_weight_output)
        )
        part = replace(observation, target=target[tokens], source=source, source_weight_output=source_weight_output)
        values = scorer.values(part).reshape(scorer.terms, -1, channels).to(sums.device)
        for total, term in zip(sums, values, strict=True):  # one by one: twice as fast as along a middle dimension
            total += term.sum(0, dtype=torch.float64)
    return sums


class ChannelMeans(Metric):
    """The scores of every channel: means over all answer tokens of all samples, on any number of processes.

    A module with several outputs per token (a norm inside each attention head) is averaged over these as well.

    Args:
        inventory: The channels of the target.
        scorer: Defines the values that are averaged.
        partners: By module, the source's number of each channel of the target, −1 where it has none, int64 ``[count]``;
            modules that are left out are numbered alike. A channel without partner counts as equal in both models.
        chunks: Number of chunks of samples for each of which means are kept beside those of all; 0 for none.

    Attributes:
        module_names: The modules that are averaged, in order.
        total: Sums over tokens, float64 ``[terms, channels]``.
        count: Number of values added up, by module, int64 ``[modules]``.
        chunk_total: The same sums for each chunk, ``[chunks, terms, channels]``.
        chunk_count: The same counts for each chunk, ``[chunks, modules]``.
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
        self.chunks = chunks
        self.module_names = [module.name for module in inventory.modules]
        self._partners = dict(partners or {})
        self._spans = {module.name: (i, span) for i, (module, span) in enumerate(inventory.spans())}
        shape, modules = (scorer.terms, inventory.total), len(self._spans)
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(modules, dtype=torch.int64), dist_reduce_fx="sum")
        if chunks:
            self.add_state("chunk_total", torch.zeros(chunks, *shape, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("chunk_count", torch.zeros(chunks, modules, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        module: str,
        target: Tensor,
        source: Tensor | None = None,
        source_weight_output: Tensor | None = None,
        chunk: int = 0,
    ) -> None:
        """Add the outputs of one module at some answer tokens of a chunk, each ``[tokens, ..., channels]``.

        Args:
            module: The module's name.
            target: Its output in the target.
            source: Its output in the source, if the scorer needs it.
            source_weight_output: Its output in the target with the source's weights, if the scorer needs it.
            chunk: The number of the chunk.
        """
        number, span = self._spans[module]
        others = [source, source_weight_output]
        if module in self._partners:  # bring the source's channels into the target's order
            partners = self._partners[module].to(target.device)
            others = [
                None if other is None else torch.where(partners >= 0, other[..., partners.clamp(min=0)], target)
                for other in others
            ]
        sums = token_sums(self.scorer, Observation(module, target, *others)).to(self.total.device)
        count = target[..., 0].numel()
        self.total[:, span] += sums
        self.count[number] += count
        if self.chunks:
            self.chunk_total[chunk, :, span] += sums
            self.chunk_count[chunk, number] += count

    def compute(self) -> Tensor:
        """The scores, float32 ``[channels]``.

        Raises:
            ActError: If a module gave no output at any answer token.
        """
        return self._scores(self.total, self.count)

    def compute_chunks(self) -> Tensor | None:
        """The scores of each chunk of samples, float32 ``[chunks, channels]`` on the CPU; ``None`` if there are none.

        Raises:
            ActError: If a module gave no output at any answer token of a chunk.
        """
        if not self.chunks:
            return None
        with self.sync_context():  # adds up the sums of all processes
            chunks = zip(self.chunk_total, self.chunk_count, strict=True)
            return torch.stack([self._scores(total, count) for total, count in chunks]).cpu()

    def _scores(self, total: Tensor, count: Tensor) -> Tensor:
        silent = [name for name, (number, _) in self._spans.items() if not count[number]]
        if silent:
            problem = "every module with parameters must take part in the forward pass"
            hint = "Its channels cannot be scored: use a model without unused modules."
            raise ActError(ConfigIssue("model", ", ".join(silent[:_MOST_NAMES]), problem, hint))
        scores = torch.empty_like(total[0])
        for number, span in self._spans.values():
            scores[span] = self.scorer.finish(total[:, span] / count[number])
        return scores.float()
