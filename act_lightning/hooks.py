"""Hooks and modes of a model that last as long as a ``with`` block, whatever happens in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def temporary_hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the block.

    Args:
        handles: What registering gave. A generator registers here, so that hooks are removed even if it fails halfway.
    """
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


@contextmanager
def each_gradient(model: nn.Module, use: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Let every backward pass in the block hand the gradient of each parameter to ``use``, and keep none.

    Args:
        model: The model. Frozen parameters take part. At the end, ``grad`` and ``requires_grad`` are as they were.
        use: Receives the first name of a parameter and its gradient, which sums over all uses of a tied parameter.
    """
    parameters = dict(model.named_parameters())
    before = {name: (parameter.requires_grad, parameter.grad) for name, parameter in parameters.items()}

    def hand_over(name: str, parameter: nn.Parameter) -> RemovableHandle:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient, parameter.grad = parameter.grad, None
            use(name, gradient)

        parameter.requires_grad_(True).grad = None
        handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(hook)
        return handle

    try:
        with temporary_hooks(hand_over(*item) for item in parameters.items()), torch.enable_grad():
            yield
    finally:
        for name, (required, gradient) in before.items():
            parameters[name].requires_grad_(required).grad = gradient


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in its own mode again, also after an exception."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def rerun_with_weights(module: nn.Module, weights: Mapping[str, Tensor], *args: Any) -> Tensor:
    """The output of a module with other weights and the same settings. No hook is called.

    Args:
        module: A module whose parameters are all its own, none a child's.
        weights: The parameters by their names in the module; others are ignored.
        args: The module's inputs.
    """
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    other = copy.copy(module)
    # A shallow copy with a parameter table of its own. torch.func.functional_call would run hooks, and whatever stands
    # in for `forward` on this instance.
    other.__dict__["_parameters"] = {**module._parameters, **{name: weights[name] for name in names}}
    output: Tensor = type(module).forward(other, *args)
    return output
