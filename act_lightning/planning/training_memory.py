"""What fine-tuning holds in memory: weights, gradients, optimizer state, copies at half precision, activations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from act_lightning.architecture import DecoderSizes
from act_lightning.checkpoints.models import load_config
from act_lightning.errors import ActError
from act_lightning.module import training_dtype
from act_lightning.planning.run import Run
from act_lightning.planning.training_checks import shares
from act_lightning.training.loss import LOGITS_AT_ONCE
from act_lightning.training.optimizers import make_optimizer

_TRIAL = 256
_ADAM_MOMENTS = 2
_GATHERED_LAYERS = 2  # FSDP gathers the next layer while one computes
_HALF, _FLOAT = 2, 4


def trained_dtype(run: Run) -> torch.dtype:
    """The dtype of the weights that are trained."""
    return training_dtype(_precision(run))


def training_parts(run: Run, parameters: int, target: Path) -> dict[str, int]:
    """Bytes that one process holds in training, by what they are for.

    ``copies`` are the layers' matrices in half precision that autocast makes of float32 weights and keeps for the
    backward pass, with checkpointing one layer's. ``gathered`` is what FSDP gathers of sharded weights, in half
    precision where it is mixed, so that there are no copies: the layer that computes, the next one, and what lies
    outside the layers. ``passing`` lives for a moment beside all others: logits and the head's gradient, or the
    gradients inside one layer, whichever is more.

    Args:
        run: The run.
        parameters: How many elements the model has.
        target: Folder of the target; a config is enough.
    """
    held, trained, sizes = shares(run.trainer), trained_dtype(run), DecoderSizes.of(load_config(target))
    state = optimizer_bytes(run.model.optimizer, trained) * held.optimizer * (not held.offloaded)
    outside = sizes.embedding * (1 if sizes.tied else 2)
    layer = max(parameters - outside, 0) // sizes.layers
    sharded, mixed = held.weights < 1, _precision(run).endswith("-mixed")
    copied = layer if run.model.gradient_checkpointing else parameters - outside
    gathered = outside + min(_GATHERED_LAYERS, sizes.layers) * layer
    return {
        "weights": round(parameters * trained.itemsize * held.weights),
        "gradients": round(parameters * trained.itemsize * held.gradients),
        "optimizer": round(parameters * state),
        "copies": copied * _HALF if mixed and not sharded else 0,
        "gathered": gathered * (_HALF if mixed else trained.itemsize) if sharded else 0,
        "activations": _activations(run, sizes),
        "passing": max(_at_the_head(run, sizes, sharded), _within_a_layer(run, sizes)),
    }


def optimizer_bytes(setting: str | Mapping[str, Any], dtype: torch.dtype) -> float:
    """Bytes of state that an optimizer keeps for a parameter, found by one step on a small matrix.

    >>> optimizer_bytes("adam", torch.float32)
    8.0
    """
    matrix = torch.nn.Parameter(torch.zeros(_TRIAL, _TRIAL, dtype=dtype))
    matrix.grad = torch.zeros_like(matrix)
    try:
        optimizer = make_optimizer(setting, [matrix], 1.0)
        optimizer.step()
    except (ActError, RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, ImportError):
        # Refused elsewhere, or made for other devices: bitsandbytes' and torchao's tell their bits by name.
        known = {"8bit": 1.0, "fp8": 1.0, "4bit": 0.5}
        width = next((size for name, size in known.items() if name in str(setting).lower()), float(dtype.itemsize))
        return _ADAM_MOMENTS * width
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(_bytes(value) for value in states if value.numel() > 1) / matrix.numel()


def _bytes(value: Tensor) -> int:
    """The bytes of a tensor; of one that is made of others, as torchao's quantized states are, those of its parts."""
    if not hasattr(value, "__tensor_flatten__"):
        return value.nbytes
    return sum(_bytes(getattr(value, part)) for part in value.__tensor_flatten__()[0])


def _activations(run: Run, sizes: DecoderSizes) -> int:
    """Bytes kept for the backward pass by a micro-batch of full length.

    A layer of a gated decoder keeps, for each token, about six vectors of the hidden size (inputs and outputs of the
    norms, the residual stream), queries, attention, keys, values, and four vectors inside the gated network; with
    checkpointing, all layers keep their inputs, and one the rest. Norms work in float32 whatever the precision, and
    under autocast the residual stream is float32 too, for what adds to it is. Of rows of several samples every layer
    keeps a mask of its own, unless attention is one that needs none.
    """
    size, stream = _widths(run)
    layers = 1 if run.model.gradient_checkpointing else sizes.layers
    vectors = {(4, 4): 6 * 4, (2, 4): 7 * 4, (2, 2): 8 * 2}[size, stream]
    layer = (
        vectors * sizes.hidden + (2 * (sizes.heads + sizes.kv_heads) * sizes.head_size + 4 * sizes.intermediate) * size
    )
    inputs = sizes.layers * sizes.hidden * stream if run.model.gradient_checkpointing else 0
    return _tokens(run) * (inputs + layers * layer) + layers * _mask(run) * size


def _mask(run: Run) -> int:
    """Elements of the mask that sdpa is given: none for a row of one sample."""
    rows = run.data.batch_size
    if rows == 1 or run.model.attention.startswith(("flash", "flex")):
        return 0
    return _tokens(run) ** 2 // (rows if run.data.packing is False else 1)


def _at_the_head(run: Run, sizes: DecoderSizes, sharded: bool) -> int:
    """Bytes at once while the loss is computed of some tokens' logits at a time, and the head's gradient with it.

    The softmax and two gradients of it are float32. Afterwards only the logits' gradient is left; beside it the head's
    is computed, for which autocast makes two matrices of half precision more, and added to the sum of all. Of shards
    the head is gathered in half precision already, and so is its gradient.
    """
    size, stream = _widths(run)
    at_once = max(1, LOGITS_AT_ONCE // sizes.vocabulary)
    logits = min(_tokens(run), at_once) * sizes.vocabulary
    mixed = stream > size
    each = _HALF if mixed and sharded else trained_dtype(run).itemsize + 2 * _HALF * mixed
    of_head = sizes.embedding * each
    summed = sizes.embedding * _FLOAT if _tokens(run) > at_once else 0
    return summed + max(3 * _FLOAT * logits, size * logits + of_head)


def _within_a_layer(run: Run, sizes: DecoderSizes) -> int:
    """Bytes of the gradients by what lies between a layer's output and its input, where they are the most."""
    size, stream = _widths(run)
    return _tokens(run) * (3 * sizes.intermediate * size + 2 * sizes.hidden * stream)


def _tokens(run: Run) -> int:
    """Tokens of a micro-batch of full length, all of them answer tokens."""
    return run.data.batch_size * run.data.max_length


def _widths(run: Run) -> tuple[int, int]:
    """Bytes of a value that a matrix gives, and of one in the residual stream."""
    precision = _precision(run)
    size = _HALF if precision.startswith(("bf16", "16")) else _FLOAT
    return size, _HALF if precision.endswith("-true") and size == _HALF else _FLOAT


def _precision(run: Run) -> str:
    return str(run.trainer.get("precision") or "32-true")
