"""What fine-tuning will do: how a strategy shards, the memory of one process, and settings that deserve a warning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from act_lightning.architecture import DecoderSizes
from act_lightning.checkpoints.models import load_config
from act_lightning.defaults import LOGITS_AT_ONCE
from act_lightning.errors import ActError, ConfigIssue, Level
from act_lightning.planning.checks import Run, process_count, strategy_of
from act_lightning.training.attention_compile import training_dtype
from act_lightning.training.optimizers import NAMED_MOMENTS, make_optimizer

PAPER_UPDATE = 16
_TRIAL = 256
_GATHERED_LAYERS = 2  # FSDP gathers the next layer while one computes
_HALF, _FLOAT = 2, 4


@dataclass(frozen=True)
class Shares:
    """The part of the whole that one process holds.

    Attributes:
        weights: Of the weights, between two steps.
        gradients: Of the gradients; 2 if buckets for exchange are held as well.
        optimizer: Of the optimizer's state.
        offloaded: Whether the optimizer's state lies in the host's memory, not the device's.
    """

    weights: float = 1.0
    gradients: float = 1.0
    optimizer: float = 1.0
    offloaded: bool = False


def shares(trainer: Mapping[str, Any]) -> Shares:
    """What one process of a run holds in training, by section ``trainer`` of the config.

    >>> shares({"strategy": "fsdp", "devices": 8}).weights, shares({"strategy": "ddp", "devices": 8}).gradients
    (0.125, 2.0)
    """
    processes, nodes = process_count(trainer) or 1, int(trainer.get("num_nodes") or 1)
    name, arguments = strategy_of(trainer)
    if "deepspeed" in name:
        stage = next((int(part) for part in name.split("_") if part.isdigit()), int(arguments.get("stage", 2)))
        weights, gradients, optimizer = (1 / processes if stage >= sharded_from else 1.0 for sharded_from in (3, 2, 1))
        return Shares(weights, gradients, optimizer, "offload" in name or bool(arguments.get("offload_optimizer")))
    if "modelparallel" in name or "model_parallel" in name:
        # FSDP2 shards over data_parallel_size: by default the number of nodes, so that one node shards nothing.
        size = arguments.get("data_parallel_size", "auto")
        part = 1 / (min(int(size), processes) if str(size).isdigit() else nodes)
        return Shares(part, part, part)
    if "fsdp" in name:
        sharding = str(arguments.get("sharding_strategy", "FULL_SHARD"))
        offloaded = "offload" in name or bool(arguments.get("cpu_offload"))
        if sharding == "NO_SHARD":
            return Shares(offloaded=offloaded)
        part = nodes / processes if sharding.startswith(("HYBRID", "_HYBRID")) else 1 / processes
        weights = 1.0 if sharding in ("SHARD_GRAD_OP", "_HYBRID_SHARD_ZERO2") else part
        return Shares(weights, part, part, offloaded)
    return Shares(gradients=2.0) if "ddp" in name and processes > 1 else Shares()


def trained_dtype(run: Run) -> torch.dtype:
    """The dtype of the weights that are trained."""
    return training_dtype(_precision(run))


def _precision(run: Run) -> str:
    return str(run.trainer.get("precision") or "32-true")


@dataclass(frozen=True)
class _Batch:
    """A micro-batch of full length, all of it answer tokens.

    Attributes:
        tokens: Tokens of the batch.
        size: Bytes of a value that a matrix gives.
        stream: Bytes of a value in the residual stream.
    """

    tokens: int
    size: int
    stream: int


def training_parts(run: Run, parameters: int, target: Path) -> dict[str, int]:
    """Bytes that one process holds in training, by purpose.

    ``copies`` are the layers' matrices in half precision that autocast makes of float32 weights and keeps for the
    backward pass, with checkpointing one layer's. ``gathered`` is what FSDP gathers of sharded weights, in half
    precision if it is mixed, so that there are no copies: the layer that computes, the next one, and everything
    outside the layers. ``passing`` is short-lived, on top of all others: logits and the head's gradient, or the
    gradients inside one layer, whichever is more.

    Args:
        run: The sections of the config.
        parameters: The number of the model's elements.
        target: The target's folder; a config is enough.
    """
    held, trained, precision = shares(run.trainer), trained_dtype(run), _precision(run)
    sizes = DecoderSizes.of(load_config(target))
    size = _HALF if precision.startswith(("bf16", "16")) else _FLOAT
    stream = _HALF if precision.endswith("-true") and size == _HALF else _FLOAT
    batch = _Batch(run.data.batch_size * run.data.max_length, size, stream)
    state = optimizer_bytes(run.model.optimizer, trained) * held.optimizer * (not held.offloaded)
    outside = sizes.embedding * (1 if sizes.tied else 2)
    layer = max(parameters - outside, 0) // sizes.layers
    sharded, mixed = held.weights < 1, precision.endswith("-mixed")
    copied = layer if run.model.gradient_checkpointing else parameters - outside
    gathered = outside + min(_GATHERED_LAYERS, sizes.layers) * layer
    within_a_layer = batch.tokens * (3 * sizes.intermediate * size + 2 * sizes.hidden * stream)
    return {
        "weights": round(parameters * trained.itemsize * held.weights),
        "gradients": round(parameters * trained.itemsize * held.gradients),
        "optimizer": round(parameters * state),
        "copies": copied * _HALF if mixed and not sharded else 0,
        "gathered": gathered * (_HALF if mixed else trained.itemsize) if sharded else 0,
        "activations": _activations(run, sizes, batch),
        "passing": max(_head_bytes(sizes, batch, trained.itemsize, sharded), within_a_layer),
    }


def optimizer_bytes(setting: str | Mapping[str, Any], dtype: torch.dtype) -> float:
    """Bytes of state that an optimizer keeps for a parameter; of a class, measured by one step on a small matrix.

    >>> optimizer_bytes("adam", torch.float32)
    8.0
    """
    if isinstance(setting, str):  # a step would import torch's compiler
        return float(NAMED_MOMENTS * dtype.itemsize)
    matrix = torch.nn.Parameter(torch.zeros(_TRIAL, _TRIAL, dtype=dtype))
    matrix.grad = torch.zeros_like(matrix)
    try:
        optimizer = make_optimizer(setting, [matrix], 1.0)
        optimizer.step()
    except (ActError, RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, ImportError):
        # Refused elsewhere, or made for other devices; bitsandbytes and torchao put their bits into the name.
        known = {"8bit": 1.0, "fp8": 1.0, "4bit": 0.5}
        width = next((size for name, size in known.items() if name in str(setting).lower()), float(dtype.itemsize))
        return NAMED_MOMENTS * width
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(_bytes(value) for value in states if value.numel() > 1) / matrix.numel()


def _bytes(value: Tensor) -> int:
    """The bytes of a tensor; of a wrapper, such as torchao's quantized states, those of the tensors inside."""
    if not hasattr(value, "__tensor_flatten__"):  # torch's protocol of such wrappers
        return value.nbytes
    return sum(_bytes(getattr(value, part)) for part in value.__tensor_flatten__()[0])


def _activations(run: Run, sizes: DecoderSizes, batch: _Batch) -> int:
    """Bytes kept for the backward pass.

    For each token, a layer of a gated decoder keeps about six vectors of the hidden size (inputs and outputs of the
    norms, the residual stream), queries, attention, keys, values, and four vectors inside the gated network; with
    checkpointing, all layers keep their inputs, and one the rest. Norms work in float32 whatever the precision, and
    under autocast so does the residual stream. For rows of several samples every layer keeps a mask of its own, unless
    the attention needs none.
    """
    checkpointing, rows, attention = run.model.gradient_checkpointing, run.data.batch_size, run.model.attention
    layers = 1 if checkpointing else sizes.layers
    vectors = {(4, 4): 6 * 4, (2, 4): 7 * 4, (2, 2): 8 * 2}[batch.size, batch.stream]
    layer = (
        vectors * sizes.hidden
        + (2 * (sizes.heads + sizes.kv_heads) * sizes.head_size + 4 * sizes.intermediate) * batch.size
    )
    inputs = sizes.layers * sizes.hidden * batch.stream if checkpointing else 0
    mask = 0
    if rows > 1 and not attention.startswith(("flash", "flex")):
        mask = batch.tokens**2 // (rows if run.data.packing is False else 1)
    return batch.tokens * (inputs + layers * layer) + layers * mask * batch.size


def _head_bytes(sizes: DecoderSizes, batch: _Batch, itemsize: int, sharded: bool) -> int:
    """Bytes at once while the loss is computed for some tokens' logits at a time, with the head's gradient.

    The softmax and two gradients of it are float32. Afterwards only the logits' gradient is left; next to it the head's
    is computed, for which autocast makes two more matrices of half precision, and added to the sum of all. A sharded
    head is gathered in half precision already, and so is its gradient.
    """
    tokens_at_once = max(1, LOGITS_AT_ONCE // sizes.vocabulary)
    logits = min(batch.tokens, tokens_at_once) * sizes.vocabulary
    mixed = batch.stream > batch.size
    gradient = sizes.embedding * (_HALF if mixed and sharded else itemsize + 2 * _HALF * mixed)
    summed = sizes.embedding * _FLOAT if batch.tokens > tokens_at_once else 0
    return summed + max(3 * _FLOAT * logits, batch.size * logits + gradient)


def training_issues(run: Run) -> list[ConfigIssue]:
    """Warnings on updates of other than 16 samples, precisions that lose small updates, strategies that do not fit."""
    issues = []
    if run.profiler.sources is None:
        message = "no source is named, so nothing is transferred: `fit` is plain fine-tuning of the target"
        issues.append(ConfigIssue("profile.sources", ..., message, "Name sources for a transfer.", "note"))
    issues += _update_issues(run)
    precision, optimizer = str(run.trainer.get("precision")), run.model.optimizer
    arguments = {} if isinstance(optimizer, str) else optimizer.get("init_args") or {}
    # torchao's stochastic rounding keeps small updates of bfloat16 weights in the mean.
    if precision in ("bf16-true", "16-true") and not arguments.get("bf16_stochastic_round"):
        message = f"weights in {precision} lose most updates to rounding at a learning rate such as 2e-5"
        hint = "Use bf16-mixed, which keeps float32 weights, or the optimizer of configs/strategy/single_gpu_bf16.yaml."
        issues.append(ConfigIssue("trainer.precision", ..., message, hint, "warning"))
    issues += _sharding_issues(run)
    validation = run.data.validation if isinstance(run.data.validation, list) else []
    if repeated := [name for name in validation if name in run.data.train]:
        message = (
            f"{', '.join(repeated)}: validated on, and trained on as well, so that the loss says little of new rows"
        )
        hint = "Name data.train without them, or write a share to hold out."
        issues.append(ConfigIssue("data.validation", ..., message, hint, "note"))
    return issues


def _update_issues(run: Run) -> list[ConfigIssue]:
    processes, accumulated = process_count(run.trainer), run.trainer.get("accumulate_grad_batches") or 1
    # Lightning counts the devices at start, on the machine of the fit: this one, as far as a plan can know
    devices = torch.accelerator.device_count()
    here = (devices or 1) * int(run.trainer.get("num_nodes") or 1)
    samples = run.data.batch_size * accumulated * (processes or here)
    factors = f"data.batch_size {run.data.batch_size} × trainer.accumulate_grad_batches {accumulated}"
    if processes is None and not devices and run.trainer.get("accelerator") in ("gpu", "cuda"):
        message = f"an update covers {samples} samples ({factors}) times the number of GPUs; this machine has none"
        message, hint = f"{message}; the paper's cover {PAPER_UPDATE}", "Name a number of trainer.devices."
        level: Level = "note" if samples == PAPER_UPDATE else "warning"
        return [ConfigIssue("trainer.devices", ..., message, hint, level)]
    if samples == PAPER_UPDATE:
        return []
    counted = f"{processes} processes" if processes else f"{here} processes, one for each device of this machine"
    message = f"an update covers {samples} samples ({factors} × {counted}); the paper's cover {PAPER_UPDATE}"
    hint = "Change one of them, unless another size is what you want."
    return [ConfigIssue("trainer.accumulate_grad_batches", ..., message, hint, "warning")]


def _sharding_issues(run: Run) -> list[ConfigIssue]:
    strategy = run.trainer.get("strategy")
    name, sizes = str(strategy), dict[str, Any]()
    if isinstance(strategy, Mapping):
        name, sizes = str(strategy.get("class_path")).rpartition(".")[2], strategy.get("init_args") or {}
    automatic = [key for key in ("data_parallel_size", "tensor_parallel_size") if sizes.get(key, "auto") == "auto"]
    if "modelparallel" not in name.lower() or not automatic:
        return []
    message = f"{name} with automatic sizes shards nothing over the devices of one node"
    hint = "Set data_parallel_size to the number of processes and tensor_parallel_size to 1."
    return [ConfigIssue("trainer.strategy", ..., message, hint, "warning")]
