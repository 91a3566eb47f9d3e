"""What fine-tuning holds in memory: weights, gradients, optimizer state, copies at half precision, activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from act_lightning.checkpoints import load_config
from act_lightning.errors import ActError
from act_lightning.module import training_dtype
from act_lightning.optimizers import make_optimizer
from act_lightning.planning.run import Run
from act_lightning.planning.strategies import shares

_TRIAL = 256
_ADAM_MOMENTS = 2
_GATHERED_LAYERS = 2  # FSDP gathers the next layer while one computes
_HALF = 2


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a decoder, from its config: layers, features, keys and values together, MLP, vocabulary, tying."""

    layers: int
    hidden: int
    keys: int
    inner: int
    vocabulary: int
    tied: bool

    @property
    def embedding(self) -> int:
        """Elements of the embedding, and of lm_head."""
        return self.vocabulary * self.hidden


def trained_dtype(run: Run) -> torch.dtype:
    """The dtype of the weights that are trained."""
    return training_dtype(_precision(run))


def training_parts(run: Run, parameters: int, target: Path) -> dict[str, int]:
    """Bytes that one process holds in training, by what they are for.

    ``copies`` are the matrices in half precision that autocast makes of float32 weights and keeps for the backward
    pass. ``gathered`` is what FSDP gathers of sharded weights, in half precision where it is mixed, so that there are
    no copies: the layer that computes, the next one, and what lies outside the layers.

    Args:
        run: The run.
        parameters: How many elements the model has.
        target: Folder of the target; a config is enough.
    """
    held, trained, sizes = shares(run.trainer), trained_dtype(run), _sizes(target)
    state = optimizer_bytes(run.model.optimizer, trained) * held.optimizer * (not held.offloaded)
    outside = sizes.embedding * (1 if sizes.tied else 2)
    layer = max(parameters - outside, 0) // sizes.layers
    sharded, mixed = held.weights < 1, _precision(run).endswith("-mixed")
    multiplied = parameters - (0 if sizes.tied else sizes.embedding)  # the embedding is looked up in
    gathered = outside + min(_GATHERED_LAYERS, sizes.layers) * layer
    return {
        "weights": round(parameters * trained.itemsize * held.weights),
        "gradients": round(parameters * trained.itemsize * held.gradients),
        "optimizer": round(parameters * state),
        "copies": multiplied * _HALF if mixed and not sharded else 0,
        "gathered": gathered * (_HALF if mixed else trained.itemsize) if sharded else 0,
        "activations": _activations(run, sizes),
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


def _activations(run: Run, sizes: _Sizes) -> int:
    """Bytes kept for the backward pass by a micro-batch of full length, its logits in float32 included.

    A layer of a gated decoder keeps, for each token, about eight vectors of the hidden size (inputs and outputs of the
    norms, queries, attention, the residual stream), keys, values, and four vectors inside the gated network; with
    checkpointing, all layers keep their inputs, and one the rest. Norms work in float32 whatever the precision, and
    under autocast the residual stream is float32 too, for what adds to it is.
    """
    precision = _precision(run)
    size = 2 if precision.startswith(("bf16", "16")) else 4
    stream = 2 if precision.endswith("-true") and size == _HALF else 4
    vectors = 8 * stream if stream > _HALF else 10 * _HALF
    layer = vectors * sizes.hidden + (2 * sizes.keys + 4 * sizes.inner) * size
    kept = sizes.layers * sizes.hidden * stream + layer if run.model.gradient_checkpointing else sizes.layers * layer
    logits = sizes.vocabulary * (size + 4 + 4)  # as computed, in float32, and their gradient
    return run.data.batch_size * run.data.max_length * (kept + logits)


def _precision(run: Run) -> str:
    return str(run.trainer.get("precision") or "32-true")


def _sizes(target: Path) -> _Sizes:
    config = load_config(target).get_text_config()
    hidden = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", 1) or 1)
    return _Sizes(
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        keys=int(getattr(config, "num_key_value_heads", None) or heads) * hidden // heads,
        inner=int(getattr(config, "intermediate_size", None) or 4 * hidden),
        vocabulary=int(config.vocab_size),
        tied=bool(getattr(config, "tie_word_embeddings", False)),
    )
