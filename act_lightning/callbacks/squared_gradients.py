"""Squared gradients, a sample at a time: the diagonal of the empirical Fisher information of a language model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from act_lightning.callbacks.gradients import each_gradient
from act_lightning.data import Sample, collate
from act_lightning.loss import answer_loss


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
