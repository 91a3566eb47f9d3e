"""Gradients, one parameter at a time: between target and source, and squared for Fisher information."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_lightning.channels import ChannelInventory, ElementSelection
from act_lightning.checkpoints.compatibility import match_vocabularies
from act_lightning.checkpoints.models import load_model
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_delta import row_deltas
from act_lightning.data.batches import collate
from act_lightning.data.labels import Sample
from act_lightning.profiling.target import Target
from act_lightning.training.loss import answer_loss


@contextmanager
def each_gradient(model: nn.Module, use: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within it, every backward pass hands the gradient of each parameter to ``use``, and keeps none.

    Args:
        model: The model; frozen parameters take part; when left, gradients are as they were.
        use: Receives a parameter's name, of a tied one the first, and its gradient, whatever its uses in the model.
    """
    parameters = dict(model.named_parameters())
    before = {name: (values.requires_grad, values.grad) for name, values in parameters.items()}
    with ExitStack() as stack, torch.enable_grad():
        stack.callback(_restore, parameters, before)
        for name, values in parameters.items():
            values.requires_grad_(True).grad = None
            stack.callback(values.register_post_accumulate_grad_hook(partial(_hand_on, name, use)).remove)
        yield


def _hand_on(name: str, use: Callable[[str, Tensor], None], parameter: Tensor) -> None:
    assert parameter.grad is not None
    gradient, parameter.grad = parameter.grad, None
    use(name, gradient)


def _restore(parameters: dict[str, nn.Parameter], before: dict[str, tuple[bool, Tensor | None]]) -> None:
    for name, (required, gradient) in before.items():
        parameters[name].requires_grad_(required).grad = gradient


_BLOCK = 16 * 1024 * 1024  # elements that are in memory in float32 at once


class InterpolatedModel:
    """θ_trg + α (θ_abl − θ_trg), with the target's config; the target itself is left as it is.

    Beside the model it keeps the task vector, both in the precision of the comparison: as much as a pair takes. Rows of
    both models are read from disk a block at a time. Rows that the source lacks stay the target's.

    Attributes:
        model: The model, at θ_trg at first.
        changes: θ_abl − θ_trg by first name of the parameter, on the model's device; differences are taken in float32.
    """

    def __init__(self, model: PreTrainedModel, target: Target, channels: ChannelInventory) -> None:
        self.model = model
        self.changes: dict[str, Tensor] = {}
        self._target = target
        self._channels = channels

    @torch.no_grad()
    def read(self, folder: Path) -> None:
        """Take another source."""
        match = match_vocabularies(self._target.folder, folder) if self._target.folder else None
        self.changes = {}
        with self._target.rows() as ours, CheckpointReader(folder) as theirs:
            for name, shape in self._channels.shapes.items():
                change = torch.empty_like(self.model.get_parameter(name), requires_grad=False)
                for rows, values in row_deltas(name, shape, ours, theirs, match):
                    change[rows] = values.to(change.device, change.dtype)
                self.changes[name] = change
                theirs.release(name)

    @torch.no_grad()
    def place(self, alpha: float, moved: Mapping[str, ElementSelection] | None = None) -> None:
        """Put the model where gradients are wanted.

        Args:
            alpha: α.
            moved: Elements that have the source's value already, whatever α.
        """
        with self._target.rows() as ours:
            for name, change in self.changes.items():
                values = self.model.get_parameter(name).data
                step = change.mul(alpha)
                if moved and name in moved:
                    step = torch.where(moved[name].expand(change.shape).to(change.device), change, step)
                for rows in torch.arange(len(values)).split(max(1, _BLOCK // max(1, change[0].numel()))):
                    place = slice(int(rows[0]), int(rows[-1]) + 1)
                    original = ours.rows(name, rows).to(values.device).float()
                    values[place] = original.add_(step[place].float()).to(values.dtype)


@contextmanager
def interpolate(target: Target, channels: ChannelInventory, device: torch.device) -> Iterator[InterpolatedModel]:
    """A model of our own beside the target: read from its folder, or a copy of the one in memory."""
    if target.model is None:
        assert target.folder is not None
        yield InterpolatedModel(load_model(target.folder, target.dtype, device), target, channels)
    else:
        own = copy.deepcopy(target.model)
        nn.Module.to(own, device)
        own.train(False)
        yield InterpolatedModel(own, target, channels)


def summed_squared_gradients(model: PreTrainedModel, samples: Iterable[Sample]) -> dict[str, Tensor]:
    """Σ_n (∂ log p(answer_n | prompt_n) / ∂θ)², the gradient of each sample squared before it is added.

    Divided by the number of samples this is the diagonal of the empirical Fisher information (equation 2 of Matena and
    Raffel 2022, https://arxiv.org/abs/2111.09832, with the labels for the expectation over the model's own answers).
    Beside the model it takes a float32 number for each parameter and the gradient of one parameter at a time.

    Args:
        model: A causal language model; it is left as it was found, gradients included.
        samples: Samples with answer tokens.

    Returns:
        float32, by parameter, of its shape, on its device; a tied parameter under its first name.
    """
    with squaring(model) as sums:
        for sample in samples:
            batch = {name: values.to(model.device) for name, values in collate([sample], 0).items()}
            loss, _ = answer_loss(model, batch)
            loss.backward()
    return sums


@contextmanager
def squaring(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within it, every backward pass adds the squares of its gradients to the sums that are given.

    Args:
        model: The model; frozen parameters take part; when left, gradients are as they were.
    """
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(values, dtype=torch.float32) for name, values in parameters.items()}

    def add_square(name: str, gradient: Tensor) -> None:
        exact = gradient.float()
        sums[name].addcmul_(exact, exact)

    with each_gradient(model, add_square):
        yield sums
