"""Activation patching: put one model's activations into another, batch by batch, and measure the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from act_lightning.architecture import output_embedding
from act_lightning.channels import ChannelInventory
from act_lightning.data.batches import AnswerPositions
from act_lightning.defaults import IGNORED
from act_lightning.profiling.outputs import ModuleCall, visit_calls
from act_lightning.training.loss import answer_logits

Batch = Mapping[str, Tensor]
ModuleIndices = Mapping[str, Tensor]
"""Channel numbers within each module, int64 ascending, by the module's name."""
PATCH, ABLATE = "patch", "ablate"
TARGET, SOURCE = "target", "source"


@torch.no_grad()
def sample_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean −log p over the answer tokens of every sample, float64 ``[samples]`` on the CPU.

    ``batch`` holds ``input_ids``, ``labels`` and ``attention_mask``, ``[samples, length]``, a sample in each row. The
    loss of a sample none of whose answer tokens is predicted is NaN.
    """
    logits, labels = answer_logits(model, batch)
    rows = (batch["labels"][:, 1:] != IGNORED).nonzero()[:, 0]
    sums = torch.zeros(2, len(batch["labels"]), dtype=torch.float64)
    losses = cross_entropy(logits, labels, reduction="none").double()
    sums.index_add_(1, rows.cpu(), torch.stack([losses, torch.ones_like(losses)]).cpu())
    return sums[0] / sums[1]


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

    @property
    def indices(self) -> dict[str, Tensor]:
        """The channels of any variant, by module."""
        return indices_by_module(self.inventory, reduce(or_, (variant.mask for variant in self.variants)))

    @property
    def names(self) -> list[str]:
        """The keys of :meth:`losses`, the same on all processes."""
        return [TARGET, SOURCE, *(f"{kind}/{variant.name}" for kind in (PATCH, ABLATE) for variant in self.variants)]

    def losses(self, batch: Batch, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of every sample of a batch under every intervention.

        The source reads the batch once; the values of its channels at every position, prompt included, are put into
        the target (``patch``), or the target's own means are (``ablate``).

        Args:
            batch: As for :func:`sample_losses`, on the models' device.
            means: The target's means of the channels of ``indices``, by module; see :func:`position_sums`.

        Returns:
            float64 ``[samples]`` by ``target``, ``source``, and ``patch/<variant>`` and ``ablate/<variant>``.
        """
        indices, partners = self.indices, self.partners
        source_indices = {
            name: partners[name][numbers] if name in partners else numbers for name, numbers in indices.items()
        }
        with record_channels(self.source, source_indices) as outputs:
            losses = {SOURCE: sample_losses(self.source, batch)}
        losses[TARGET] = sample_losses(self.target, batch)
        for variant in self.variants:
            chosen = indices_by_module(self.inventory, variant.mask)
            # The columns of this variant's channels among those of all variants.
            columns = {name: torch.searchsorted(indices[name], numbers) for name, numbers in chosen.items()}

            def patched(name: str, call: int, columns: ModuleIndices = columns) -> Tensor:
                output = outputs[name][call]
                return output[..., columns[name].to(output.device)]

            def ablated(name: str, _: int, columns: ModuleIndices = columns) -> Tensor:
                return means[name][columns[name]]

            for kind, values in ((PATCH, patched), (ABLATE, ablated)):
                with replace_channels(self.target, chosen, values):
                    losses[f"{kind}/{variant.name}"] = sample_losses(self.target, batch)
        return losses


def position_sums(model: PreTrainedModel, batches: Iterable[Batch], indices: ModuleIndices) -> dict[str, Tensor]:
    """Sums of channels over all positions that are not padding; of the head's, over those that predict answer tokens.

    A norm inside each attention head is averaged over the heads. Batches are as for :func:`sample_losses`, on the
    model's device. By module, float64 ``[2, channels]`` on the CPU: the sums, and the number of values added up.
    """
    head, modules = output_embedding(model), dict(model.named_modules())
    sums = {name: torch.zeros(2, len(numbers), dtype=torch.float64) for name, numbers in indices.items()}
    for batch in batches:
        tokens = AnswerPositions(batch["attention_mask"].bool())
        with record_channels(model, indices) as recorded:
            sample_losses(model, batch)
        for name, outputs in recorded.items():
            is_head = modules.get(name) is head
            for output in outputs:
                values = output if is_head else tokens.take(output)
                flat = values.flatten(end_dim=-2).double().cpu()
                sums[name] += torch.stack([flat.sum(0), torch.full(flat.shape[1:], float(len(flat)))])
    return sums
