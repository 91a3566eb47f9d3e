"""Gradients of one parameter at a time: used as soon as a backward pass has them, and let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn


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
