"""What the modules of one model give at answer tokens, by hooks that are gone afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from act_lightning.architecture import output_embedding
from act_lightning.data.batches import AnswerPositions, BufferPool

Rerun = Callable[[Mapping[str, Tensor]], Tensor]
"""Runs a module once more on the same input, with other weights: what it then gives at answer tokens."""
Sink = Callable[[str, Tensor, Rerun], None]


@contextmanager
def capture_outputs(
    model: nn.Module, names: Sequence[str], answers: AnswerPositions, sink: Sink, workspace: BufferPool | None = None
) -> Iterator[None]:
    """Hand the output of every named module at answer tokens to ``sink``; the head computes no other logits.

    Args:
        model: A causal language model of transformers.
        names: Full names of modules.
        answers: Where answer tokens are.
        sink: Receives a module's name, its output at answer tokens, and what runs it again, in the order of the
            forward pass.
        workspace: Where outputs are copied to. Without one the sink may not keep them: they may be views of what the
            model goes on to change in place.
    """
    head = output_embedding(model)  # type: ignore[arg-type]

    def hook(name: str, take: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda module, args, output: sink(name, take(output), partial(_again, module, args, take))

    with ExitStack() as stack:
        if head is not None:
            stack.callback(head.register_forward_pre_hook(answers.take_from_input).remove)
        for name in names:
            module = model.get_submodule(name)
            take = _only_row if module is head else partial(answers.take, workspace=workspace)
            stack.callback(module.register_forward_hook(hook(name, take)).remove)
        yield


def _only_row(output: Tensor) -> Tensor:
    return output.squeeze(0)


def _again(
    module: nn.Module, args: tuple[Any, ...], take: Callable[[Tensor], Tensor], weights: Mapping[str, Tensor]
) -> Tensor:
    given, *more = args
    if given.is_floating_point():  # all but embeddings work on each token alone: only answer tokens are needed
        return rerun_with_weights(module, weights, take(given), *more)
    return take(rerun_with_weights(module, weights, given, *more))


def rerun_with_weights(module: nn.Module, weights: Mapping[str, Tensor], *args: Any) -> Tensor:
    """What a module with these settings and other weights gives; no hook is called.

    Args:
        module: A module whose parameters are its own, none of them a child's.
        weights: The parameters, by their names in the module; others are left out.
        args: What it is called with.
    """
    other = copy.copy(module)
    names = [name for name, values in module._parameters.items() if values is not None]
    other.__dict__["_parameters"] = {**module._parameters, **{name: weights[name] for name in names}}
    output: Tensor = type(module).forward(other, *args)  # its own, whatever stands in for it on this instance
    return output
