"""Means over answer tokens, channel by channel, of the values that a scorer defines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torchmetrics import Metric

from act_lightning.channels import ChannelInventory
from act_lightning.data.batches import to_device
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.profiling.outputs import ExpertOutput, Output, count_by_expert
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
        values = (
            scorer.values(_rows_of(observation, start, start + step))
            .reshape(scorer.terms, -1, channels)
            .to(sums.device)
        )
        for total, term in zip(sums, values, strict=True):  # one by one: twice as fast as along a middle dimension
            total += term.sum(0, dtype=torch.float64)
    return sums


def expert_sums(
    scorer: ActivationScorer,
    module: str,
    outputs: Mapping[str, ExpertOutput],
    places: Sequence[Tensor],
    counts: Tensor,
    pairs: int,
) -> Tensor:
    """As :func:`token_sums`, of each expert, with zeros where a token is routed to it in another model only.

    Args:
        scorer: Defines the values.
        module: The name of the experts' parameter.
        outputs: ``target``, and what is there of ``source`` and ``source_weight_output``, at the same tokens.
        places: The pairs of their rows, see :func:`number_rows`.
        counts: Number of pairs of each expert, int64 ``[experts]``.
        pairs: Number of all pairs.

    Returns:
        float64 ``[terms, experts, features]``.
    """
    target = outputs["target"].values

    def observe(pairs: slice, rows: Sequence[slice]) -> Observation:
        aligned = {
            role: align(output.values[part], each[part] - pairs.start, pairs.stop - pairs.start)
            for (role, output), each, part in zip(outputs.items(), places, rows, strict=True)
        }
        return Observation(module, **aligned)

    if target.device.type != "cpu":
        observation = observe(slice(0, pairs), [slice(0, len(each)) for each in places])
        return sums_in_blocks(scorer, observation, counts, _DEVICE_BLOCK)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows_of = [[slice(*span) for span in pairwise(torch.searchsorted(each, starts).tolist())] for each in places]
    pairs_of = [slice(*span) for span in pairwise(starts.tolist())]
    sums = torch.zeros(scorer.terms, len(counts), target.shape[1], dtype=torch.float64)
    for number in counts.nonzero().flatten().tolist():  # one expert at a time, whose values stay in the cache
        sums[:, number] = token_sums(scorer, observe(pairs_of[number], [rows[number] for rows in rows_of]))
    return sums


def sums_in_blocks(scorer: ActivationScorer, observation: Observation, rows: Tensor, block: int) -> Tensor:
    """As :func:`token_sums`, of each expert, several at a time: for accelerators, where one would be too little work.

    Args:
        scorer: Defines the values.
        observation: Outputs ``[rows, features]``, sorted by expert.
        rows: How many of them each expert has, int64 ``[experts]``.
        block: About how many values are in memory together in float64.

    Returns:
        float64 ``[terms, experts, features]``.
    """
    tokens, features = observation.target.shape
    device, ends = float64_device(observation.target.device), rows.cumsum(0)
    sums = torch.zeros(scorer.terms, len(rows), features, dtype=torch.float64, device=device)
    step = max(1, block // max(1, features))
    for start in range(0, tokens, step):
        end = min(start + step, tokens)
        lengths = (ends.clamp(start, end) - (ends - rows).clamp(start, end)).to(device)
        values = scorer.values(_rows_of(observation, start, end)).reshape(scorer.terms, -1, features).to(device)
        for total, term in zip(sums, values, strict=True):
            total += torch.segment_reduce(term.double(), "sum", lengths=lengths, axis=0, unsafe=True)
    return sums


def _rows_of(observation: Observation, start: int, end: int) -> Observation:
    """The outputs at some tokens, or some rows of those of experts."""
    others = (observation.source, observation.source_weight_output)
    source, weight_output = (None if output is None else output[start:end] for output in others)
    target = observation.target[start:end]
    return replace(observation, target=target, source=source, source_weight_output=weight_output)


def number_rows(outputs: Sequence[ExpertOutput]) -> tuple[Tensor, list[Tensor]]:
    """Number every pair of an expert and a token that some model routes to it, by expert and then by token.

    Returns:
        The expert of each pair, int64 ``[pairs]``; and of each output the pair of each of its rows, ascending.
    """
    total = max(1, outputs[0].routing.total)
    keys = [output.routing.experts * total + output.routing.tokens for output in outputs]
    pairs = torch.unique(torch.cat(keys))
    return pairs // total, [torch.searchsorted(pairs, key) for key in keys]


def align(values: Tensor, places: Tensor, count: int) -> Tensor:
    """Rows ``[rows, features]`` at their places, ascending int64 ``[rows]``, among ``count``; the others are zero.

    >>> align(torch.ones(2, 1), torch.tensor([0, 2]), 3).flatten().tolist()
    [1.0, 0.0, 1.0]
    """
    if len(values) == count:
        return values
    return values.new_zeros(count, values.shape[1]).index_copy_(0, places, values)


class ChannelMeans(Metric):
    """The scores of every channel: means over all answer tokens of all samples, on any number of processes.

    A module with several outputs per token (a norm inside each attention head) is averaged over these as well. An
    expert's activation is 0 at a token that is not routed to it, in either model.

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
        usage: How many answer tokens the target, the source, and either of them route to each expert, int64
            ``[3, experts]``, the experts of every packed parameter of :attr:`expert_spans`.
        chunk_usage: The same for each chunk, ``[chunks, 3, experts]``, where the scorer divides by it.
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    chunk_total: Tensor
    chunk_count: Tensor
    usage: Tensor
    chunk_usage: Tensor

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
        self._owners = inventory.modules
        self.module_names = [module.name for module in inventory.modules]
        self._partners = dict(partners or {})
        self._spans = {module.name: (i, span) for i, (module, span) in enumerate(inventory.spans())}
        starts = list(accumulate((module.experts for module in inventory.modules), initial=0))
        self.expert_spans = {
            module.name: slice(start, start + module.experts)
            for module, start in zip(inventory.modules, starts, strict=False)
            if module.experts
        }
        shape, modules, experts = (scorer.terms, inventory.total), len(self._spans), starts[-1]
        self._by_routed = scorer.experts == "routed"
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(modules, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("usage", torch.zeros(3, experts, dtype=torch.int64), dist_reduce_fx="sum")
        if chunks:
            if self._by_routed:
                chunk_usage = torch.zeros(chunks, 3, experts, dtype=torch.int64)
                self.add_state("chunk_usage", chunk_usage, dist_reduce_fx="sum")
            self.add_state("chunk_total", torch.zeros(chunks, *shape, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("chunk_count", torch.zeros(chunks, modules, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        module: str,
        target: Output,
        source: Output | None = None,
        source_weight_output: Output | None = None,
        chunk: int = 0,
    ) -> None:
        """Add the outputs of one module at some answer tokens of a chunk, each ``[tokens, ..., channels]``.

        Those of packed experts are :class:`~act_lightning.profiling.outputs.ExpertOutput`.

        Args:
            module: The module's name.
            target: Its output in the target.
            source: Its output in the source, if the scorer needs it.
            source_weight_output: Its output in the target with the source's weights, if the scorer needs it.
            chunk: The number of the chunk.
        """
        number, span = self._spans[module]
        if isinstance(target, ExpertOutput):
            assert not isinstance(source, Tensor)
            assert not isinstance(source_weight_output, Tensor)
            given = {"target": target, "source": source, "source_weight_output": source_weight_output}
            outputs = {role: output for role, output in given.items() if output is not None}
            sums = self._expert_sums(module, outputs, chunk)
            self._add(number, span, sums, target.routing.total, chunk)
            return
        assert not isinstance(source, ExpertOutput)
        assert not isinstance(source_weight_output, ExpertOutput)
        others = [source, source_weight_output]
        if target.shape[-1] != span.stop - span.start:  # a norm with a weight for each feature of each head
            target = target.flatten(-2)
            others = [None if other is None else other.flatten(-2) for other in others]
        if module in self._partners:  # bring the source's channels into the target's order
            partners = self._partners[module] = to_device(self._partners[module], target.device)
            others = [
                None if other is None else torch.where(partners >= 0, other[..., partners.clamp(min=0)], target)
                for other in others
            ]
        sums = token_sums(self.scorer, Observation(module, target, *others)).to(self.total.device)
        self._add(number, span, sums, target[..., 0].numel(), chunk)

    def _add(self, number: int, span: slice, sums: Tensor, count: int, chunk: int) -> None:
        """Add the sums of a module over that many values."""
        self.total[:, span] += sums
        self.count[number] += count
        if self.chunks:
            self.chunk_total[chunk, :, span] += sums
            self.chunk_count[chunk, number] += count

    def _expert_sums(self, module: str, outputs: Mapping[str, ExpertOutput], chunk: int) -> Tensor:
        """Sums over tokens of every expert's values, float64 ``[terms, experts · features]``; and count the tokens."""
        span, target = self.expert_spans[module], outputs["target"]
        of_pairs, places = number_rows(list(outputs.values()))
        of_rows = [target.routing.experts, outputs.get("source", target).routing.experts, of_pairs]
        usage = torch.stack([count_by_expert(experts, span.stop - span.start) for experts in of_rows])
        self.usage[:, span] += usage.to(self.usage.device)
        if self.chunks and self._by_routed:
            self.chunk_usage[chunk, :, span] += usage.to(self.usage.device)
        sums = expert_sums(self.scorer, module, outputs, places, usage[2], len(of_pairs))
        if not self._by_routed:  # a scorer may give two zeros another value than 0
            zero = target.values.new_zeros(1, target.values.shape[1])
            of_zeros = token_sums(self.scorer, Observation(module, **dict.fromkeys(outputs, zero)))
            sums += of_zeros.unsqueeze(1) * (target.routing.total - usage[2]).to(sums.device)[:, None]
        return sums.flatten(1).to(self.total.device)

    def compute(self) -> Tensor:
        """The scores, float32 ``[channels]``.

        Raises:
            ActError: If a module gave no output at any answer token.
        """
        return self._scores(self.total, self.count, self.count.tolist(), self.usage)

    def compute_usage(self) -> dict[str, Tensor]:
        """How many answer tokens the target, the source, and either route to each expert, on all processes.

        Returns:
            int64 ``[3, experts]`` on the CPU, by module of packed experts.
        """
        with self.sync_context():
            usage = self.usage.cpu()
        return {name.rpartition(".")[0]: usage[:, span] for name, span in self.expert_spans.items()}

    def compute_chunks(self) -> Tensor | None:
        """The scores of each chunk of samples, float32 ``[chunks, channels]`` on the CPU; ``None`` if there are none.

        Raises:
            ActError: If a module gave no output at any answer token of a chunk.
        """
        if not self.chunks:
            return None
        with self.sync_context():  # adds up the sums of all processes
            usages = self.chunk_usage if self._by_routed else [self.usage] * self.chunks
            chunks = zip(self.chunk_total, self.chunk_count, self.chunk_count.tolist(), usages, strict=True)
            return torch.stack([self._scores(*chunk) for chunk in chunks]).cpu()

    def _scores(self, total: Tensor, count: Tensor, counts: Sequence[int], usage: Tensor) -> Tensor:
        """The scores by sums and counts, the latter on the device and on the host, which would wait for each."""
        silent = [module for module in self._owners if not counts[self._spans[module.name][0]]]
        active = {owned for module in self._owners if module not in silent for owned in module.owned}
        silent = [module for module in silent if not active.issuperset(module.owned)]  # in layers that share weights
        if silent:
            problem = "every module with parameters must have an output at each answer token"
            hint = "Its channels cannot be scored: use a model without unused modules, or select by weights."
            names = ", ".join(module.name for module in silent[:_MOST_NAMES])
            raise ActError(ConfigIssue("model", names, problem, hint))
        scores = torch.empty_like(total[0])
        for name, (number, span) in self._spans.items():
            if self._by_routed and name in self.expert_spans:  # an expert that no token is routed to keeps its zeros
                of_experts = usage[2, self.expert_spans[name]].clamp(min=1)
                tokens = of_experts.repeat_interleave((span.stop - span.start) // len(of_experts)).to(total.device)
            else:
                tokens = count[number].clamp(min=1)
            scores[span] = self.scorer.finish(total[:, span] / tokens)
        return scores.float()
