"""Activation patching: put one model's activations into another, batch by batch, and measure the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from act_lightning.architecture import output_embedding
from act_lightning.channels import ChannelInventory
from act_lightning.data.batches import AnswerPositions
from act_lightning.defaults import IGNORED
from act_lightning.hooks import temporary_hooks
from act_lightning.training.loss import answer_logits


@torch.no_grad()
def sample_losses(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean −log p over the answer tokens of every sample.

    Args:
        model: A causal language model.
        batch: ``input_ids``, ``labels`` and ``attention_mask``, ``[samples, length]``, a sample in each row.

    Returns:
        float64 ``[samples]`` on the CPU; NaN for a sample none of whose answer tokens is predicted.
    """
    logits, wanted = answer_logits(model, batch)
    rows = (batch["labels"][:, 1:] != IGNORED).nonzero()[:, 0]
    sums = torch.zeros(2, len(batch["labels"]), dtype=torch.float64)
    each = cross_entropy(logits, wanted, reduction="none").double()
    sums.index_add_(1, rows.cpu(), torch.stack([each, torch.ones_like(each)]).cpu())
    return sums[0] / sums[1]


Places = Mapping[str, Tensor]
"""Numbers of channels within each module, int64 ascending, by the module's name."""
Values = Callable[[str, int, Tensor], Tensor]
"""What stands in for channels: given a module, the number of its call in this forward pass and its output."""


def places_of(inventory: ChannelInventory, mask: Tensor) -> dict[str, Tensor]:
    """The channels of a mask by module, without modules that have none.

    Args:
        inventory: The channels of the model.
        mask: Bool ``[channels]``.
    """
    parts = inventory.split(mask)
    return {name: part.nonzero().squeeze(1) for name, part in parts.items() if bool(part.any())}


@contextmanager
def recording(model: nn.Module, places: Places) -> Iterator[dict[str, list[Tensor]]]:
    """Within it, the outputs of these channels are kept, ``[..., channels]``, one for every call of a module.

    Args:
        model: The model; it is not changed.
        places: The channels.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in places}

    def keep(name: str, numbers: Tensor, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        kept[name].append(output.detach()[..., numbers.to(output.device)])

    with _hooks(model, {name: partial(keep, name, numbers) for name, numbers in places.items()}):
        yield kept


@contextmanager
def replacing(model: nn.Module, places: Places, values: Values) -> Iterator[None]:
    """Within it, these channels of the model's modules give ``values`` instead of their own; weights stay as they are.

    Args:
        model: The model.
        places: The channels.
        values: What they give, broadcastable to ``[..., channels]`` of the module's output.
    """
    calls = dict.fromkeys(places, 0)

    def replace(name: str, numbers: Tensor, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        changed, call = output.clone(), calls[name]
        calls[name] += 1
        changed[..., numbers.to(output.device)] = values(name, call, output).to(output)
        return changed

    with _hooks(model, {name: partial(replace, name, numbers) for name, numbers in places.items()}):
        yield


@contextmanager
def _hooks(model: nn.Module, hooks: Mapping[str, Callable[..., Tensor | None]]) -> Iterator[None]:
    handles = (model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items())
    with temporary_hooks(handles), torch.no_grad():
        yield


Batch = Mapping[str, Tensor]
PATCH, ABLATE = "patch", "ablate"
TARGET, SOURCE = "target", "source"


@dataclass(frozen=True)
class Variant:
    """Channels to intervene on.

    Attributes:
        name: Such as ``selected`` or ``random 1``.
        mask: Bool ``[channels]``; none of them without a partner in the source.
    """

    name: str
    mask: Tensor


@dataclass(frozen=True)
class PatchingExperiment:
    """A pair of models and the channels that are tried.

    Attributes:
        target: The model that is intervened on, in evaluation mode.
        source: Its sibling, on the same device.
        inventory: The target's channels.
        variants: The channels that are tried.
        partners: The source's number of each channel of modules that it numbers otherwise.
    """

    target: PreTrainedModel
    source: PreTrainedModel
    inventory: ChannelInventory
    variants: Sequence[Variant]
    partners: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def places(self) -> dict[str, Tensor]:
        """The channels of any variant."""
        return places_of(self.inventory, reduce(or_, (variant.mask for variant in self.variants)))

    @property
    def places_in_source(self) -> dict[str, Tensor]:
        """The source's numbers of the same channels, in the same order."""
        return {
            name: self.partners[name][numbers] if name in self.partners else numbers
            for name, numbers in self.places.items()
        }

    @property
    def names(self) -> list[str]:
        """What :meth:`losses` gives, the same on all processes."""
        return [TARGET, SOURCE, *(f"{kind}/{variant.name}" for kind in (PATCH, ABLATE) for variant in self.variants)]

    def losses(self, batch: Batch, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of every sample of a batch under every intervention.

        The source reads the batch once; what its channels give at every position, prompt included, is put into the
        target (``patch``), or the target's own mean is (``ablate``).

        Args:
            batch: As for the losses of samples, on the models' device.
            means: The target's means of the channels of ``places``, by module; see :func:`position_sums`.

        Returns:
            float64 ``[samples]`` by ``target``, ``source``, and ``patch/<variant>`` and ``ablate/<variant>``.
        """
        with recording(self.source, self.places_in_source) as kept:
            found = {SOURCE: sample_losses(self.source, batch)}
        found[TARGET] = sample_losses(self.target, batch)
        for variant in self.variants:
            places = places_of(self.inventory, variant.mask)
            columns = _columns(places, self.places)
            for kind, values in ((PATCH, _recorded(kept, columns)), (ABLATE, _constant(means, columns))):
                with replacing(self.target, places, values):
                    found[f"{kind}/{variant.name}"] = sample_losses(self.target, batch)
        return found


def _columns(places: Places, recorded: Places) -> dict[str, Tensor]:
    """Where the channels of ``places`` stand among the recorded ones."""
    return {name: torch.searchsorted(recorded[name], numbers) for name, numbers in places.items()}


def _recorded(kept: Mapping[str, Sequence[Tensor]], columns: Places) -> Values:
    return lambda name, call, _: kept[name][call][..., columns[name].to(kept[name][call].device)]


def _constant(means: Mapping[str, Tensor], columns: Places) -> Values:
    return lambda name, _, __: means[name][columns[name]]


def position_sums(model: PreTrainedModel, batches: Iterable[Batch], places: Places) -> dict[str, Tensor]:
    """Sums of channels over all positions that are not padding; of the head's, over those that predict answer tokens.

    A norm inside each attention head is averaged over the heads.

    Args:
        model: The model.
        batches: As for :func:`~act_lightning.analysis.activation_patching.sample_losses`, on the model's device.
        places: The channels.

    Returns:
        By module, float64 ``[2, channels]`` on the CPU: the sums, and the number of values added up.
    """
    head = output_embedding(model)
    sums = {name: torch.zeros(2, len(numbers), dtype=torch.float64) for name, numbers in places.items()}
    for batch in batches:
        real = AnswerPositions(batch["attention_mask"].bool())
        with recording(model, places) as kept:
            sample_losses(model, batch)
        for name, output in ((name, output) for name, outputs in kept.items() for output in outputs):
            values = output if model.get_submodule(name) is head else real.take(output)
            flat = values.flatten(end_dim=-2).double().cpu()
            sums[name] += torch.stack([flat.sum(0), torch.full(flat.shape[1:], float(len(flat)))])
    return sums
