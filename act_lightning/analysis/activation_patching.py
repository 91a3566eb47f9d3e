"""Activation patching: put one model's activations into another, batch by batch, and measure the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from act_lightning.architecture import output_embedding
from act_lightning.channels import ChannelInventory
from act_lightning.data.batches import AnswerPositions, predicting_positions, to_device
from act_lightning.profiling.channel_means import float64_device
from act_lightning.profiling.outputs import ModuleCall, visit_calls
from act_lightning.training.loss import answer_logits

Batch = Mapping[str, Any]
ModuleIndices = Mapping[str, Tensor]
"""Channel numbers within each module, int64 ascending, by the module's name."""
PATCH, ABLATE = "patch", "ablate"
TARGET, SOURCE = "target", "source"


@torch.no_grad()
def token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """−log p of the answer tokens of a batch, float64 ``[answer tokens]``, on its device."""
    return cross_entropy(*answer_logits(model, batch), reduction="none").double()


def means_by_sample(losses: Tensor, batch: Batch) -> Tensor:
    """Means of :func:`token_losses` over each sample, float64 ``[..., samples]`` on the CPU.

    ``batch`` holds ``input_ids``, ``labels`` and ``attention_mask``, ``[samples, length]``, a sample in each row. The
    loss of a sample none of whose answer tokens is predicted is NaN.

    Args:
        losses: float64 ``[..., answer tokens]``.
        batch: What they were computed on.
    """
    samples, length = batch["labels"].shape
    rows = predicting_positions(batch).index // length
    *flat, rows = torch.cat([losses.view(-1, len(rows)), rows[None]]).cpu()  # waits for the device, once
    sums = torch.zeros(len(flat) + 1, samples, dtype=torch.float64)
    sums.index_add_(1, rows.long(), torch.stack([*flat, torch.ones_like(rows)]))
    return (sums[:-1] / sums[-1]).view(*losses.shape[:-1], samples)


def indices_by_module(inventory: ChannelInventory, mask: Tensor) -> dict[str, Tensor]:
    """The channels of a bool mask ``[channels]`` by module, without modules that have none."""
    parts = inventory.split(mask)
    return {name: part.nonzero().squeeze(1) for name, part in parts.items() if bool(part.any())}


@contextmanager
def record_channels(model: PreTrainedModel, indices: ModuleIndices) -> Iterator[dict[str, list[Tensor]]]:
    """While active, collect the outputs of these channels, ``[..., channels]``, one for every call of a module.

    Those of packed experts are ``[tokens, channels]``, and 0 at tokens that are not routed to their expert.
    """
    outputs: dict[str, list[Tensor]] = {name: [] for name in indices}

    def record(call: ModuleCall) -> None:
        numbers = indices[call.name].to(call.values.device)
        if call.routing is None:
            outputs[call.name].append(call.values.detach()[..., numbers])
            return
        dense = call.values.new_zeros(call.routing.total, len(numbers))
        for rows, tokens, columns, features in _by_expert(call, numbers):
            dense[tokens.unsqueeze(1), columns] = call.values.detach()[rows.unsqueeze(1), features]
        outputs[call.name].append(dense)

    with torch.no_grad(), visit_calls(model, list(indices), record):
        yield outputs


@contextmanager
def replace_channels(
    model: PreTrainedModel, indices: ModuleIndices, values: Callable[[str, int], Tensor]
) -> Iterator[None]:
    """While active, these channels give other values than their own; weights stay as they are.

    ``values`` maps a module's name and the number of its call in this forward pass to the values, broadcastable to
    ``[..., channels]`` of the module's output, of packed experts to ``[tokens, channels]``. An expert's values count at
    tokens that the model routes to it.
    """
    calls = dict.fromkeys(indices, 0)

    def replace(call: ModuleCall) -> Tensor:
        changed, number = call.values.clone(), calls[call.name]
        calls[call.name] += 1
        numbers = indices[call.name].to(changed.device)
        new = values(call.name, number).to(changed)
        if call.routing is None:
            changed[..., numbers] = new
            return changed
        dense = new.expand(call.routing.total, len(numbers))
        for rows, tokens, columns, features in _by_expert(call, numbers):
            changed[rows.unsqueeze(1), features] = dense[tokens.unsqueeze(1), columns]
        return changed

    with torch.no_grad(), visit_calls(model, list(indices), replace):
        yield


def _by_expert(call: ModuleCall, channels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each expert that has some of the channels: its rows, their tokens, which channels these are, and features."""
    assert call.routing is not None
    width = call.values.shape[-1]
    for expert in torch.unique(channels // width):
        rows = (call.routing.experts == expert).nonzero().squeeze(1)
        columns = (channels // width == expert).nonzero().squeeze(1)
        yield rows, call.routing.tokens[rows], columns, channels[columns] % width


@dataclass(frozen=True)
class Variant:
    """Channels to intervene on, bool ``[channels]``, each with a partner in the source; named such as ``random 1``."""

    name: str
    mask: Tensor


@dataclass(frozen=True)
class PatchingExperiment:
    """A target in evaluation mode, a source on the same device, and the target's channels to intervene on.

    ``partners`` has the source's number of each channel, by module, for modules that it numbers differently.
    """

    target: PreTrainedModel
    source: PreTrainedModel
    inventory: ChannelInventory
    variants: Sequence[Variant]
    partners: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def indices(self) -> dict[str, Tensor]:
        """The channels of any variant, by module, on the models' device."""
        return self._on_device(self._indices)

    @cached_property
    def _indices(self) -> dict[str, Tensor]:
        return indices_by_module(self.inventory, reduce(or_, (variant.mask for variant in self.variants)))

    @cached_property
    def _source_indices(self) -> dict[str, Tensor]:
        """The source's numbers of the same channels."""
        partners = self.partners
        return self._on_device(
            {name: partners[name][numbers] if name in partners else numbers for name, numbers in self._indices.items()}
        )

    @cached_property
    def _chosen(self) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """The channels of each variant, and their places among those of any."""
        chosen = [indices_by_module(self.inventory, variant.mask) for variant in self.variants]
        columns = [
            {name: torch.searchsorted(self._indices[name], numbers) for name, numbers in indices.items()}
            for indices in chosen
        ]
        return [(self._on_device(a), self._on_device(b)) for a, b in zip(chosen, columns, strict=True)]

    def _on_device(self, indices: ModuleIndices) -> dict[str, Tensor]:
        return {name: to_device(numbers, self.target.device) for name, numbers in indices.items()}

    @property
    def names(self) -> list[str]:
        """The keys of :meth:`losses`, the same on all processes."""
        return [TARGET, SOURCE, *(f"{kind}/{variant.name}" for kind in (PATCH, ABLATE) for variant in self.variants)]

    def losses(self, batch: Batch, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of every sample of a batch under every intervention.

        The source reads the batch once; the values of its channels at every position, prompt included, are put into
        the target (``patch``), or the target's own means are (``ablate``).

        Args:
            batch: As for :func:`means_by_sample`, on the models' device.
            means: The target's means of the channels of ``indices``, by module; see :func:`position_sums`.

        Returns:
            float64 ``[samples]`` by ``target``, ``source``, and ``patch/<variant>`` and ``ablate/<variant>``.
        """
        with record_channels(self.source, self._source_indices) as outputs:
            losses = {SOURCE: token_losses(self.source, batch)}
        losses[TARGET] = token_losses(self.target, batch)
        for variant, (chosen, columns) in zip(self.variants, self._chosen, strict=True):

            def patched(name: str, call: int, columns: ModuleIndices = columns) -> Tensor:
                return outputs[name][call][..., columns[name]]

            def ablated(name: str, _: int, columns: ModuleIndices = columns) -> Tensor:
                return means[name][columns[name]]

            for kind, values in ((PATCH, patched), (ABLATE, ablated)):
                with replace_channels(self.target, chosen, values):
                    losses[f"{kind}/{variant.name}"] = token_losses(self.target, batch)
        return dict(zip(losses, means_by_sample(torch.stack([*losses.values()]), batch), strict=True))


def position_sums(model: PreTrainedModel, batches: Iterable[Batch], indices: ModuleIndices) -> dict[str, Tensor]:
    """Sums of channels over all positions that are not padding; of the head's, over those that predict answer tokens.

    A norm inside each attention head is averaged over the heads. Batches are as for :func:`means_by_sample`, on the
    model's device. By module, float64 ``[2, channels]`` there: the sums, and the number of values added up.
    """
    head, modules, device = output_embedding(model), dict(model.named_modules()), float64_device(model.device)
    sums = {name: torch.zeros(2, len(numbers), dtype=torch.float64, device=device) for name, numbers in indices.items()}
    for batch in batches:
        mask, shape = batch.get("attention_mask"), batch["input_ids"].shape
        everywhere = AnswerPositions(shape, torch.arange(shape.numel(), device=model.device))
        tokens = everywhere if mask is None else AnswerPositions.of(mask.bool())
        with record_channels(model, indices) as recorded:
            token_losses(model, batch)
        for name, outputs in recorded.items():
            is_head = modules.get(name) is head
            for output in outputs:
                values = output if is_head else tokens.take(output)
                flat = values.flatten(end_dim=-2).to(device).double()
                sums[name] += torch.stack([flat.sum(0), torch.full_like(flat[0], len(flat))])
    return sums
