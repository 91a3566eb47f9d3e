"""Two siblings read the same tokens; how far apart are their activations, channel by channel?

Implements paper §3.1, eq. (1) (https://arxiv.org/abs/2601.09398): the activation of a channel is its module's output,
compared at answer tokens only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from act_lightning.channels import ChannelInventory
from act_lightning.errors import ActError, Fault

IGNORED = -100
_MOST_NAMES = 5


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
    return _absolute_sum(first, second) / first[..., 0].numel()


def _absolute_sum(first: Tensor, second: Tensor) -> Tensor:
    difference = (first.float() - second.float()).abs()
    return difference.flatten(end_dim=-2).sum(0, dtype=torch.float64)


class MeanAbsoluteDifference(Metric):
    """Δa_i of every channel: a mean over all answer tokens of all samples, on any number of processes.

    A module with several outputs per token (a norm inside each attention head) is averaged over these as well.

    Args:
        inventory: The channels of the first model.
        partners: The second model's number of each channel of the first, −1 where it lacks it, int64 ``[count]`` by
            module; by default all are numbered alike. What has no partner scores 0.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, inventory: ChannelInventory, partners: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self._partners = dict(partners or {})
        self._spans = {module.name: (i, span) for i, (module, span) in enumerate(inventory.spans())}
        self.add_state("total", torch.zeros(inventory.total, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(len(self._spans), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, module: str, first: Tensor, second: Tensor) -> None:
        """Add the outputs of one module in the two models, each ``[tokens, ..., channels]``."""
        number, span = self._spans[module]
        if module in self._partners:
            second = _paired(first, second, self._partners[module].to(second.device))
        self.total[span] += _absolute_sum(first, second).to(self.total.device)
        self.count[number] += first[..., 0].numel()

    def compute(self) -> Tensor:
        """The scores, float32 ``[channels]``.

        Raises:
            ActError: If a module gave no output at any answer token.
        """
        silent = [name for name, (number, _) in self._spans.items() if not self.count[number]]
        if silent:
            rule = "every module with parameters must take part in the forward pass"
            remedy = "Its channels cannot be scored: use a model without unused modules."
            raise ActError(Fault("model", ", ".join(silent[:_MOST_NAMES]), rule, remedy))
        scores = torch.empty_like(self.total)
        for number, span in self._spans.values():
            scores[span] = self.total[span] / self.count[number]
        return scores.float()


def _paired(first: Tensor, second: Tensor, partners: Tensor) -> Tensor:
    """``second`` in the order of the channels of ``first``, and ``first`` itself where there is no partner."""
    return torch.where(partners >= 0, second[..., partners.clamp(min=0)], first)


@dataclass(frozen=True)
class AnswerPositions:
    """Where the answer tokens of a batch are.

    Attributes:
        mask: Bool ``[rows, length]``.
    """

    mask: Tensor

    def take(self, output: Tensor) -> Tensor:
        """The part of a module's output that belongs to answer tokens.

        Args:
            output: ``[rows, length, channels]``; with heads ``[rows, length, heads, channels]`` or
                ``[rows, heads, length, channels]``; flattened ``[rows · length, channels]``; rows may be 1 where
                all rows share it (position embeddings).

        Returns:
            ``[tokens, channels]`` or ``[tokens, heads, channels]``.
        """
        rows, length = self.mask.shape
        if output.ndim == 2:
            output = output.view(-1, length, output.shape[-1])
        if output.ndim == 4 and output.shape[1] != length:
            output = output.transpose(1, 2)
        return output.expand(rows, *output.shape[1:])[self.mask]

    def take_from_input(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook for the language model's head: it computes logits ``[1, tokens, vocabulary]`` only."""
        return (self.take(args[0]).unsqueeze(0), *args[1:])


@contextmanager
def observed(
    model: nn.Module, names: Sequence[str], answers: AnswerPositions, sink: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Hand the output of every named module at answer tokens to ``sink``; the head computes no other logits.

    Args:
        model: A causal language model of transformers.
        names: Full names of modules.
        answers: Where answer tokens are.
        sink: Receives a module's name and its output at answer tokens, in the order of the forward pass.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]

    def hook(name: str, is_head: bool) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, __, output: sink(name, output.squeeze(0) if is_head else answers.take(output))

    with ExitStack() as stack:
        if head is not None:
            stack.callback(head.register_forward_pre_hook(answers.take_from_input).remove)
        for name in names:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_hook(hook(name, module is head)).remove)
        yield


def compare_on_batch(
    target: nn.Module,
    sources: Sequence[nn.Module],
    batch: Mapping[str, Tensor],
    metrics: Sequence[MeanAbsoluteDifference],
    names: Sequence[str],
) -> int:
    """Run the target once and every source once over a batch, and add the differences to each source's metric.

    Args:
        target: The model to be improved, in evaluation mode.
        sources: Its siblings, on the same device.
        batch: ``input_ids`` and ``labels``, int64 ``[rows, length]``, with ``attention_mask`` of rows that are padded
            on the right, or ``position_ids`` that restart at every sample of a packed row; answer tokens are where the
            labels are not −100.
        metrics: One metric a source.
        names: Full names of the modules to compare.

    Returns:
        Number of answer tokens in the batch.
    """
    batch = _unambiguous(batch, target)
    answers = AnswerPositions(batch["labels"] != IGNORED)
    tokens = int(answers.mask.sum())
    if not tokens:
        return 0
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.no_grad(), observed(target, names, answers, lambda name, output: kept[name].append(output)):
        _forward(target, batch)
    for number, (source, metric) in enumerate(zip(sources, metrics, strict=True)):
        waiting = {name: deque(outputs) for name, outputs in kept.items()}
        if number == len(sources) - 1:
            kept.clear()  # the last source frees each output as it consumes it

        with torch.no_grad(), observed(source, names, answers, _consumer(waiting, metric)):
            _forward(source, batch)
    return tokens


def _consumer(waiting: Mapping[str, deque[Tensor]], metric: MeanAbsoluteDifference) -> Callable[[str, Tensor], None]:
    return lambda name, output: metric.update(name, waiting[name].popleft(), output)


def _forward(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    mask = batch.get("attention_mask")
    model(
        input_ids=batch["input_ids"],
        attention_mask=None if mask is None or bool(mask.all()) else mask,
        position_ids=batch.get("position_ids"),
        use_cache=False,
    )


def _unambiguous(batch: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """One more column of padding where the length equals a number of heads.

    Only then could ``[rows, heads, length, channels]`` be taken for ``[rows, length, heads, channels]``.
    """
    config = model.config
    heads = {getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    if batch["input_ids"].shape[1] not in heads:
        return batch
    fill = {"labels": IGNORED}  # and zeros elsewhere: a sample of its own at the end of a packed row
    longer = {name: nn.functional.pad(values, (0, 1), value=fill.get(name, 0)) for name, values in batch.items()}
    return _unambiguous(longer, model)
