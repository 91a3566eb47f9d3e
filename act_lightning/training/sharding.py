"""Strategies: which of them a transfer supports, and how each process loads and writes its part of a sharded model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.fsdp._common_utils import clean_tensor_name
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

from act_lightning.architecture import assign, decoder_layers, parameter_names, require_language_model
from act_lightning.checkpoints.reader import CheckpointReader, load_on_device, model_without_weights
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.training.lightning_compat import averaged_model, callbacks_of

_Result = TypeVar("_Result")


def is_sharded(trainer: L.Trainer) -> bool:
    """Whether no process holds the whole model while training."""
    return isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))


@contextmanager
def back_on_device(trainer: L.Trainer) -> Iterator[None]:
    """Have the model on its device in ``on_fit_end``: by then Lightning has moved it to the host, unless it is sharded.

    No earlier hook will do: training that is already complete calls no ``on_train_end``, and in that hook other
    callbacks still change weights, such as ``WeightAveraging``.
    """
    if is_sharded(trainer):
        yield
        return
    trainer.strategy.model_to_device()
    try:
        yield
    finally:
        trainer.lightning_module.cpu()


def strategy_issues(trainer: L.Trainer) -> list[ConfigIssue]:
    """Why rows cannot be injected under the trainer's strategy.

    DeepSpeed, for one, copies the weights for its optimizer before a callback can change them.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, FSDPStrategy, ModelParallelStrategy)):
        problem = "must be one of one device, DDP, FSDP1 and FSDP2 for a transfer"
        hint = "Use one device, ddp, FSDPStrategy or ModelParallelStrategy; or `merge` first, and fine-tune its result."
        return [ConfigIssue("trainer.strategy", type(strategy).__name__, problem, hint)]
    issues = averaging_issues(trainer)
    if isinstance(strategy, ModelParallelStrategy) and (size := strategy.device_mesh["tensor_parallel"].size()) != 1:
        problem = "must be 1: rows are injected and trained in shards of data parallelism"
        hint = "Set tensor_parallel_size: 1 and data_parallel_size: the number of processes; `auto` shards nothing."
        issues.insert(0, ConfigIssue("trainer.strategy.tensor_parallel_size", size, problem, hint))
    return issues


def fsdp1_precision(precision: str) -> MixedPrecision:
    """FSDP1's precision under ``trainer.precision``: parameters are gathered in half precision if it is a mixed one.

    Buffers keep their dtype, and gradients are reduced in float32, as under FSDP2. Lightning's own choice would round
    both: at position 2047, rotary frequencies in bfloat16 are off by more than a radian.
    """
    gathered = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return MixedPrecision(param_dtype=gathered, reduce_dtype=torch.float32)


def averaging_issues(trainer: L.Trainer) -> list[ConfigIssue]:
    """The issue of a ``WeightAveraging`` under a strategy that shards: its setup builds and copies the whole model."""
    if not is_sharded(trainer):
        return []
    problem = "must not be combined with a strategy that shards: it copies the whole model on every process"
    hint = "Average on one device or under ddp, or leave it out."
    names = [type(callback).__name__ for callback in callbacks_of(trainer, WeightAveraging)]
    return [ConfigIssue("trainer.callbacks", name, problem, hint) for name in names]


@torch.no_grad()
def start_averages_from(trainer: L.Trainer, module: nn.Module) -> None:
    """Copy the values of ``module`` to the averaged copies that callbacks hold.

    Otherwise an average that is validated or exported before its first update would be the model without the transfer.
    """
    for callback in callbacks_of(trainer, WeightAveraging):
        if (average := averaged_model(callback)) is not None:
            copies = chain(average.parameters(), average.buffers())
            for copy, value in zip(copies, chain(module.parameters(), module.buffers()), strict=True):
                copy.copy_(value)


@torch.no_grad()
def run_in_strategy(trainer: L.Trainer, function: Callable[[], _Result]) -> _Result:
    """Call a function that computes with the model that is trained, outside of Lightning's own steps.

    It runs in the Trainer's precision, without gradients, and as one forward pass of what FSDP1 has wrapped, which
    alone gathers the parameters of its outermost unit; Lightning redirects its steps in the same way. All processes
    must call this, with functions that call the model equally often.
    """
    root, module = trainer.strategy.model, trainer.lightning_module
    with trainer.precision_plugin.val_step_context():
        if not isinstance(root, FullyShardedDataParallel):
            return function()
        _generate_in_step(require_language_model(module))
        forward = module.forward

        def redirected() -> _Result:
            module.forward = forward  # type: ignore[method-assign]
            return function()

        module.forward = redirected  # type: ignore[method-assign]
        result: _Result = root()
        return result


@dataclass(frozen=True)
class LocalRows:
    """Consecutive rows of a parameter, writable in place.

    Attributes:
        values: The rows that this process holds, possibly none; the whole parameter if it is not sharded.
        first_row: Index of the first of them in the whole parameter.
    """

    values: Tensor
    first_row: int


class Layout:
    """How the parameters of a model are spread over processes.

    All processes must make the same calls in the same order: some strategies gather. What FSDP2 has left gathered after
    a forward pass (as it does with the outermost module) is sharded again: a change of gathered values would be lost.

    Args:
        model: A model, or what a strategy has made of it.
        root: What the strategy has wrapped, if that is more than the model: the LightningModule under FSDP1.
    """

    def __init__(self, model: nn.Module, root: nn.Module | None = None) -> None:
        self._modules = {clean_tensor_name(name): module for name, module in model.named_modules()}
        self._units: dict[nn.Module, FullyShardedDataParallel] = {}  # the innermost FSDP1 unit around each module
        self._sharded = set[nn.Module]()  # by FSDP2
        for unit in (model if root is None else root).modules():
            if isinstance(unit, FSDPModule):
                unit.reshard()
                self._sharded.update(unit.modules())
            if isinstance(unit, FullyShardedDataParallel):
                if unit not in self._units:
                    unit.check_is_root()  # otherwise the first unit to be gathered would take itself for the root
                self._units |= dict.fromkeys(unit.modules(), unit)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """All buffers, which every process holds whole, under the names that :meth:`parts` takes."""
        return {
            f"{name}.{leaf}" if name else leaf: buffer
            for name, module in self._modules.items()
            for leaf, buffer in module.named_buffers(recurse=False)
        }

    def parts(self, names: Collection[str]) -> Iterator[tuple[str, LocalRows]]:
        """What this process may write of each parameter, before it takes the next one.

        FSDP1 gathers one unit (such as a decoder layer) at a time, whole, on every process, and keeps its own share.

        Args:
            names: Names that the parameters have in a model that no strategy has touched.
        """
        by_unit: dict[FullyShardedDataParallel | None, list[str]] = {}
        for name in names:
            by_unit.setdefault(self._unit(name), []).append(name)
        for unit, names_in_unit in by_unit.items():
            if unit is None:
                yield from ((name, local_rows(name, self._parameter(name))) for name in names_in_unit)
            else:
                with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=True):
                    yield from ((name, LocalRows(self._parameter(name).data, 0)) for name in names_in_unit)

    def whole(self, name: str) -> Tensor:
        """The whole of a parameter, without gradient."""
        if (unit := self._unit(name)) is not None:
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
                return self._parameter(name).detach().clone()
        parameter = self._parameter(name).detach()
        return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter

    def _parameter(self, name: str) -> Tensor:
        """A parameter, sharded if FSDP2 shards its module.

        Raises:
            ActError: It is whole on this process all the same.
        """
        owner, _, leaf = name.rpartition(".")
        module = self._modules[owner]
        parameter: Tensor = getattr(module, leaf)
        if module in self._sharded and not isinstance(parameter, DTensor):
            problem = "must be sharded as the module around it is, and is whole on every process"
            hint = "Leave ignored_params out of fully_shard."
            raise ActError(ConfigIssue(name, tuple(parameter.shape), problem, hint))
        return parameter

    def _unit(self, name: str) -> FullyShardedDataParallel | None:
        """The FSDP1 unit that holds a parameter."""
        return self._units.get(self._modules[name.rpartition(".")[0]])


def local_rows(name: str, parameter: Tensor) -> LocalRows:
    """The rows of ``parameter`` that this process holds: all of them, unless FSDP2 has sharded it.

    Raises:
        ActError: It is sharded by columns, as tensor parallelism may do.
    """
    if not isinstance(parameter, DTensor):
        return LocalRows(parameter.data, 0)
    if any(isinstance(placement, Shard) and placement.dim != 0 for placement in parameter.placements):
        problem = f"must be whole or sharded by rows, and is {parameter.placements}"
        raise ActError(ConfigIssue(name, tuple(parameter.shape), problem, "Set tensor_parallel_size: 1."))
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    with torch.no_grad():
        return LocalRows(parameter.to_local(), offset[0] if offset else 0)


def load_for_fsdp2(
    folder: Path, dtype: torch.dtype, mesh: DeviceMesh, device: torch.device, policy: MixedPrecisionPolicy | None = None
) -> PreTrainedModel:
    """The causal language model of ``folder``, each decoder layer and the rest sharded by rows over ``mesh``.

    Built without weights, sharded (``fully_shard``, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html),
    then filled: a process reads only its own rows, 64 MiB at a time.

    Args:
        folder: A Hugging Face folder with safetensors weights.
        dtype: The dtype of all parameters.
        mesh: One dimension, of the processes that share the parameters.
        device: Where this process keeps its part.
        policy: Precision of the gathered parameters and of the reduction of gradients; by default ``dtype``.

    Raises:
        ActError: As :class:`~act_lightning.checkpoints.reader.CheckpointReader`; NaN or infinity in the rows read here.
    """
    policy = policy or MixedPrecisionPolicy()
    with CheckpointReader(folder) as reader:
        model = model_without_weights(reader, dtype, device)
        _generate_in_step(model)
        for layer in decoder_layers(model).values():  # so that one layer at a time is gathered
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        model.register_forward_hook(_reshard_after_inference)
        for parameter, names in parameter_names(model).items():
            empty: Any = parameter  # a DTensor without memory
            part = local_rows(names[0], empty)
            values = torch.empty(part.values.shape, dtype=parameter.dtype, device=device)
            reader.fill(names[0], values, part.first_row)
            sharded = DTensor.from_local(
                values, empty.device_mesh, empty.placements, run_check=False, shape=empty.shape, stride=empty.stride()
            )
            filled = nn.Parameter(sharded, requires_grad=parameter.requires_grad)
            for name in names:
                assign(model, name, filled)
    return model


def gathering_policy(trainer: L.Trainer) -> MixedPrecisionPolicy:
    """In which precision parameters are gathered under FSDP2, and gradients reduced."""
    gathered = torch.bfloat16 if trainer.precision == "bf16-mixed" else None
    return MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)


def load_like_trained(trainer: L.Trainer, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A further model in evaluation mode, sharded over all processes if the model that is trained is.

    Raises:
        ActError: As :func:`~act_lightning.checkpoints.models.load_model`.
    """
    device = trainer.strategy.root_device
    if not is_sharded(trainer):
        return load_on_device(folder, dtype, device)
    mesh = init_device_mesh(device.type, (trainer.world_size,))
    return load_for_fsdp2(folder, dtype, mesh, device, gathering_policy(trainer))


def _reshard_after_inference(model: nn.Module, *_: object) -> None:
    """Free what FSDP2 keeps gathered for a backward pass, if none follows.

    Otherwise whoever looks at the model after a validation, such as an optimizer, finds other parameters.
    """
    if isinstance(model, FSDPModule) and not torch.is_grad_enabled():
        model.reshard()


def load_for_fsdp1(
    folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, Callable[[nn.Module], None]]:
    """The causal language model of ``folder`` without weights, and the function that reads a module's weights.

    FSDP1 calls its ``param_init_fn`` with every module of a unit (such as a decoder layer), then shards the unit,
    before it turns to the next one (https://docs.pytorch.org/docs/stable/fsdp.html). So a process holds at most one
    unit besides its own part.

    Returns:
        The model, parameters on the meta device, and the ``param_init_fn``, which raises an ActError as
        :class:`~act_lightning.checkpoints.reader.CheckpointReader` does, and for NaN or infinity.
    """
    with CheckpointReader(folder) as reader:
        model = model_without_weights(reader, dtype, device)
    _generate_in_step(model)
    names, tied = parameter_names(model), dict[nn.Parameter, nn.Parameter]()
    missing = Counter({empty: len(of_parameter) for empty, of_parameter in names.items()})

    def read_weights(module: nn.Module) -> None:
        for leaf, empty in list(module.named_parameters(recurse=False)):
            filled = tied.get(empty)
            if filled is None:
                values = torch.empty_like(empty, device=device)
                with CheckpointReader(folder) as reader:
                    reader.fill(names[empty][0], values)
                filled = nn.Parameter(values, requires_grad=empty.requires_grad)
            setattr(module, leaf, filled)
            missing[empty] -= 1
            if missing[empty]:
                tied[empty] = filled
            else:  # let go, because it is sharded soon
                tied.pop(empty, None)

    return model, read_weights


def _generate_in_step(model: PreTrainedModel) -> None:
    """Let transformers' generation go on until the longest answer of all processes ends: each needs the others."""
    setattr(model, "_is_fsdp_managed_module", True)  # noqa: B010 - the class has no such attribute
